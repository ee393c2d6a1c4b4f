"""A finished run, loaded: its configuration, its base and its trained leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistjax.config import CompressionConfig, validate
from gistjax.errors import CheckpointError

if TYPE_CHECKING:
    from gistjax.assembly import Foundation

SHIPPED = Path(__file__).parents[1] / "launch/results/quality/qa_r4"
"""The compressor that comes with the repository: four tokens a slot, for SmolLM2-135M-Instruct."""


def load_config(rundir: Path) -> CompressionConfig:
    """The configuration that a run was trained with.

    Raises:
        CheckpointError: if the directory holds no run.
    """
    path = rundir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): --run takes the directory of a run, as "
            "printed by gistjax.train; the repository has one in launch/results/quality/qa_r4."
        ) from error
    return CompressionConfig.from_dict(values)


def load_trained(rundir: Path, config: CompressionConfig) -> tuple[Foundation, tuple[Any, ...]]:
    """A run's base, and its model as structure, trained leaves and frozen leaves.

    Raises:
        GistjaxError: if the base is not at hand or another one, or the exported compressor does not fit.
    """
    from gistjax import assembly, results
    from gistjax.training.checkpoint import import_trainable
    from gistjax.training.step import split_model

    validate(config)
    foundation = assembly.lay_foundation(config)
    results.check_base(rundir, foundation)
    graphdef, fresh, frozen = split_model(assembly.model_on(config, foundation))
    trainable = import_trainable(rundir / "compressor.safetensors", fresh)
    return foundation, (graphdef, trainable, frozen)
