"""Instruments of the benchmark: the time of a call, the rates of a device, memory used."""

from __future__ import annotations

import logging
import re
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

log = logging.getLogger(__name__)

GIB = 2**30


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the median wall time of calls that are waited for, after two that are not counted."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])[repeats // 2]


def machine_rates() -> dict[str, float]:
    """Measure this device in a large bf16 matmul and in a copy (bytes read and written)."""
    on_cpu = jax.default_backend() == "cpu"
    n, chain, size = (1024, 2, 1 << 24) if on_cpu else (8192, 10, 1 << 30)
    key = jax.random.key(0)
    a = jax.random.normal(key, (n, n), jnp.bfloat16) / n**0.5
    matmul = jax.jit(lambda x: jax.lax.fori_loop(0, chain, lambda _, y: y @ x, x))
    copy = jax.jit(lambda x: jax.lax.fori_loop(0, chain, lambda _, y: -y, x))
    matmul_s = median_seconds(lambda: matmul(a), 5) / chain
    buffer = jnp.ones(size, jnp.bfloat16)
    copy_s = median_seconds(lambda: copy(buffer), 5) / chain
    return {
        "matmul_tflops": float(f"{2 * n**3 / matmul_s / 1e12:.4g}"),
        "copy_tb_per_s": float(f"{2 * buffer.nbytes / copy_s / 1e12:.4g}"),
    }


def peak_memory_gib() -> float | None:
    """Return the most device memory in use so far; None where the backend does not tell."""
    statistics = jax.devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    return None if peak is None else round(peak / GIB, 2)


def log_kernels(function: Callable[[], Any], n: int) -> None:
    """Log the n kernels of the first GPU that took longest, by the profiler's own account.

    Of collectives it also logs how much of their time is hidden: passed while another kernel ran.
    """
    kernels = profiled(function)
    nanoseconds, calls = defaultdict[str, float](float), Counter[str]()
    for name, start, end in kernels:
        nanoseconds[name] += end - start
        calls[name] += 1
    log.info("%d kernels, %.2f ms busy", calls.total(), sum(nanoseconds.values()) / 1e6)
    collectives = [(start, end) for name, start, end in kernels if name.startswith("nccl")]
    if collectives:
        others = [(start, end) for name, start, end in kernels if not name.startswith("nccl")]
        total = sum(end - start for start, end in collectives)
        hidden = common_time(collectives, others)
        log.info(
            "%d of them collectives, %.2f ms, of which %.2f ms behind other kernels",
            len(collectives),
            total / 1e6,
            hidden / 1e6,
        )
    for name in sorted(nanoseconds, key=nanoseconds.__getitem__, reverse=True)[:n]:
        log.info("%9.3f ms  %5d x  %s", nanoseconds[name] / 1e6, calls[name], name[:90])


def profiled(function: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """Return the kernels that the first GPU ran for a call: name, start and end in nanoseconds."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(function())
        trace = next(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(trace))
    gpus = sorted((plane for plane in data.planes if "GPU" in plane.name), key=lambda p: p.name)
    return [
        (event.name, event.start_ns, event.start_ns + event.duration_ns)
        for plane in gpus[:1]
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]


def common_time(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """Return how long one of `some` and one of `others` ran at once.

    Intervals are start and end; each of `some` counts for itself.
    """
    union: list[list[float]] = []
    for start, end in sorted(others):
        if union and start <= union[-1][1]:
            union[-1][1] = max(union[-1][1], end)
        else:
            union.append([start, end])
    return sum(
        max(0.0, min(end, last) - max(start, first)) for start, end in some for first, last in union
    )


class HostMemory:
    """Peak of what this process allocates in the `with` block, in bytes, by sampling.

    Anonymous memory alone counts: not files that are mapped.
    """

    def __enter__(self) -> HostMemory:
        self._before, self.peak, self._done = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._now() - self._before)

    @staticmethod
    def _now() -> int:
        match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(match[1]) * 1024 if match else 0
