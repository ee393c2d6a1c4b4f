"""A small sweep."""

from pathlib import Path

import pytest

from gistjax.config import CompressionConfig
from tests.helpers.made_runs import ARCHITECTURES, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Write four architectures at two sizes, and the controls."""
    for number, name in enumerate(ARCHITECTURES):
        for slots in (32, 64):
            config = CompressionConfig(architecture=name, target_length=slots)
            write_run(tmp_path, f"M{slots}_{name}", config, number % 3)
    write_run(tmp_path, "full_context", CompressionConfig(architecture="none"), 3)
    write_run(tmp_path, "closed_book", CompressionConfig(architecture="closed_book"), 0)
    return tmp_path
