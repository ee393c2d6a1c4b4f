"""The benchmark's instruments."""

import mmap
import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.runtime.profiling import (
    HostMemory,
    common_time,
    machine_rates,
    median_seconds,
    peak_memory_gib,
)


def test_two_calls_are_not_counted(monkeypatch):
    clock = iter([0, 9, 0, 9, 0, 1, 0, 5, 0, 2])  # starts and ends
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert median_seconds(lambda: jnp.zeros(()), 3) == 2


@pytest.mark.slow
def test_rates_are_positive():
    rates = machine_rates()
    assert rates["matmul_tflops"] > 0 and rates["copy_tb_per_s"] > 0


INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=6).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)


@given(INTERVALS, INTERVALS)
def test_common_time_is_what_counting_ticks_gives(some, others):
    def runs(tick: int, intervals: list[tuple[int, int]]) -> int:
        return sum(start <= tick < end for start, end in intervals)

    ticks = sum(runs(tick, some) * bool(runs(tick, others)) for tick in range(41))
    assert common_time(some, others) == ticks


def test_host_memory_sees_what_is_allocated_and_dropped():
    sampler = HostMemory()
    with sampler:
        pages = mmap.mmap(-1, 2**28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages[::4096] = bytes(2**16)  # one byte a page
        time.sleep(0.1)
        pages.close()
    assert 2**27 <= sampler.peak <= 2**29


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="devices tell their memory")
def test_a_cpu_does_not_tell_its_memory():
    assert peak_memory_gib() is None
