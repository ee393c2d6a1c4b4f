"""What JAX computes on, and whether that is what the machine has."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import jax

from gistjax.errors import ConfigError

log = logging.getLogger(__name__)


def find_devices() -> list[Any]:
    """JAX's devices; warns where a GPU is left idle.

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
            "warning: computing on the CPU, although there is an NVIDIA GPU: `python -m gistjax.doctor` tells why."
        )
    return devices


def leaves_gpu_idle(devices: list[Any]) -> bool:
    """Whether JAX computes on the CPU beside an NVIDIA driver, without having been asked to."""
    chosen = os.environ.get("JAX_PLATFORMS") == "cpu"
    return devices[0].platform == "cpu" and nvidia_driver() is not None and not chosen


def memory_limit() -> int | None:
    """Bytes that JAX may have of each device; None where it does not say, and of CPUs, which have none of their own."""
    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    return (statistics or {}).get("bytes_limit")


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def nvidia_driver(file: Path = Path("/proc/driver/nvidia/version")) -> int | None:
    """Major version of the NVIDIA driver, or None where there is none."""
    try:
        match = re.search(r"Kernel Module.*?\s(\d+)\.\d+", file.read_text())
    except OSError:
        return None
    return int(match[1]) if match else None
