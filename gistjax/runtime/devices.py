"""The start of JAX, its devices, and a check that they are those of the machine."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError

log = logging.getLogger(__name__)

KEPT_SHARE = 32
"""What is kept for later may take one byte in so many of a device's memory."""
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def start_jax(config: CompressionConfig) -> None:
    """Start JAX, with the settings that must come before it looks for devices.

    Raises:
        ConfigError: if `config.deterministic` comes too late, because JAX runs already, or if JAX
            finds no device.
    """
    choose_kernels(config)
    find_devices()
    if jax.default_backend() != "cpu":
        keep_compiled_programs()


def choose_kernels(config: CompressionConfig) -> None:
    """Under `config.deterministic` forbid kernels that add in no fixed order or win a race.

    Raises:
        ConfigError: if that comes too late, because JAX runs already.
    """
    if not config.deterministic or is_deterministic():
        return
    devices = jax.config.values["jax_num_cpu_devices"]
    try:  # JAX refuses to change this once it runs, and does not say so otherwise
        jax.config.update("jax_num_cpu_devices", devices + 1)
    except RuntimeError as error:
        raise ConfigError(
            "deterministic=True comes too late, since JAX runs already in this process: start it "
            f"with XLA_FLAGS={DETERMINISTIC} in the environment."
        ) from error
    jax.config.update("jax_num_cpu_devices", devices)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def is_deterministic(config: CompressionConfig | None = None) -> bool:
    """Return whether every run gives the same bytes: by configuration or by XLA's flags."""
    given = re.search(
        r"--xla_gpu_deterministic_ops(=(true|1)|\s|$)", os.environ.get("XLA_FLAGS", "")
    )
    return bool(given) or (config is not None and config.deterministic)


def keep_compiled_programs() -> None:
    """Keep compiled programs in `JAX_COMPILATION_CACHE_DIR`, by default the user's cache.

    On CPUs only for what compiles most of its time, before anything is compiled.
    """
    jax.config.update("jax_compilation_cache_dir", str(compile_cache()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def compile_cache() -> Path:
    """Return the folder of compiled programs."""
    if folder := jax.config.values["jax_compilation_cache_dir"]:
        return Path(folder)
    own = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gistjax"
    return own / (f"xla-{_cpu()}" if jax.default_backend() == "cpu" else "xla")


def _cpu(file: Path = Path("/proc/cpuinfo")) -> str:
    """Return a name for this CPU's instructions: a program may use all, and runs on no other."""
    try:
        features = re.search(r"(?:flags|Features)\s*:(.*)", file.read_text())
    except OSError:
        features = None
    told = features[1] if features else platform.processor()
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def find_devices() -> list[Any]:
    """Return JAX's devices; warn if a GPU is left idle.

    Raises:
        ConfigError: if JAX starts none.
    """
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a platform is not installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        cause = (str(error).strip().splitlines() or [f"JAX_PLATFORMS={asked}"])[0]
        raise ConfigError(
            f"JAX starts no device ({cause[:200]}): unset JAX_PLATFORMS or set it to cpu; "
            "`python -m gistjax.doctor` tells what is missing."
        ) from error
    if leaves_gpu_idle(devices):
        log.warning(
            "warning: computing on the CPU, although there is an NVIDIA GPU: "
            "`python -m gistjax.doctor` tells why."
        )
    return devices


def leaves_gpu_idle(devices: list[Any]) -> bool:
    """Return True if JAX computes on the CPU beside an NVIDIA driver, without being asked to."""
    chosen = os.environ.get("JAX_PLATFORMS") == "cpu"
    return devices[0].platform == "cpu" and nvidia_driver() is not None and not chosen


def memory_limit() -> int | None:
    """Return the bytes that JAX may use on each device; None for CPUs and where unknown."""
    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    return (statistics or {}).get("bytes_limit")


def share_of_device(least: int) -> int:
    """Return how many bytes of a device may be kept for later, at least `least`."""
    return max(least, (memory_limit() or 0) // KEPT_SHARE)


def host_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def nvidia_driver(file: Path = Path("/proc/driver/nvidia/version")) -> int | None:
    """Return the major version of the NVIDIA driver, or None if there is none."""
    try:
        match = re.search(r"Kernel Module.*?\s(\d+)\.\d+", file.read_text())
    except OSError:
        return None
    return int(match[1]) if match else None


def device_name() -> str:
    """Return number and kind of JAX's devices, as `1 x NVIDIA H200`."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
