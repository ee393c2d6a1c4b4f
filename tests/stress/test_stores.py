"""The short form of `python -m tests.stress --only stores`."""

import pytest

from . import stores


@pytest.mark.slow
def test_a_store_whose_writer_is_killed_is_whole(tmp_path):
    found = stores.trials(range(10), tmp_path)
    assert not found["failures"] and found["seen"].total() == 10
    assert found["documents"]
