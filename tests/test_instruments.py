"""The benchmark's instruments."""

import mmap
import time

import jax
import jax.numpy as jnp
import pytest

from gistjax.instruments import HostMemory, machine_rates, median_seconds, peak_memory_gib


def test_two_calls_are_not_counted(monkeypatch):
    clock = iter([0, 9, 0, 9, 0, 1, 0, 5, 0, 2])  # starts and ends
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert median_seconds(lambda: jnp.zeros(()), 3) == 2


def test_rates_are_positive():
    rates = machine_rates()
    assert rates["matmul_tflops"] > 0 and rates["copy_tb_per_s"] > 0


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
