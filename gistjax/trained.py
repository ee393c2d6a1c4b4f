"""What the commands on a finished run share: its configuration."""

from __future__ import annotations

import json
from pathlib import Path

from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError


def load_config(rundir: Path) -> CompressionConfig:
    """The configuration that a run was trained with.

    Raises:
        CheckpointError: if the directory holds no run.
    """
    path = rundir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): --run takes the directory of a run, as "
            "printed by gistjax.train."
        ) from error
    return CompressionConfig.from_dict(values)
