"""A small sweep."""

from pathlib import Path

import pytest

from gistjax.config import CompressionConfig
from tests.helpers.made_runs import HEADS, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four heads at two sizes, and the controls."""
    for number, head in enumerate(HEADS):
        for slots in (32, 64):
            config = CompressionConfig(architecture=head, target_length=slots)
            write_run(tmp_path, f"M{slots}_{head}", config, number % 3)
    write_run(tmp_path, "full_context", CompressionConfig(architecture="none"), 3)
    write_run(tmp_path, "closed_book", CompressionConfig(architecture="closed_book"), 0)
    return tmp_path
