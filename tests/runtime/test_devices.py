"""What the devices have room for."""

import pytest

from gistjax.runtime import devices

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "share"), [(139 * GIB, 139 * GIB // 32), (2 * GIB, GIB), (None, GIB)]
)
def test_a_large_memory_keeps_more(monkeypatch, memory, share):
    """One byte in 32, at least what is asked for; a CPU's device tells no limit."""
    monkeypatch.setattr(devices, "memory_limit", lambda: memory)
    assert devices.share_of_device(GIB) == share
