"""What the commands on a finished run share: its configuration, base and trained leaves, and the text to ask about."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistjax.config import CompressionConfig, validate
from gistjax.errors import CheckpointError, DataError

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


def read_text(name: str) -> str:
    """The content of the file that --context names, or of standard input.

    Raises:
        DataError: if there is no such file, or it is empty or no text.
    """
    try:
        text = (
            sys.stdin.buffer.read().decode()
            if name == "-"
            else Path(name).read_text(encoding="utf-8")
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"--context={name} is not UTF-8 text: convert it first (pdftotext for PDF, iconv for other encodings)."
        ) from error
    except OSError as error:
        hint = " (for a text on the command line, pipe it into --context -)" if " " in name else ""
        raise DataError(f"--context={name} cannot be read: {error.strerror}{hint}.") from error
    if not text.strip():
        raise DataError("the context is empty: give a text to ask about.")
    return text
