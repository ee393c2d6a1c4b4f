"""What the commands on a finished run share: its configuration, and the text to ask about."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gistjax.compress import EXPORTED as EXPORTED
from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError, ConfigError, DataError

SHIPPED = Path(__file__).parents[1] / "shipped" / "smollm2_135m"
"""The compressor that comes with the repository: SmolLM2-135M-Instruct, 2 to 16 tokens a slot, contexts of up to 512 tokens."""

MEANING = (
    "architecture", "slot_form", "slot_place", "slot_start", "slot_positions", "connector", "lora", "encoder",
)  # fmt: skip
"""Settings without which trained weights mean something else."""


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
            f"printed by gistjax.train; the repository has one in {Path(*SHIPPED.parts[-4:])}."
        ) from error
    return CompressionConfig.from_dict(values)


def check_meaning(config: CompressionConfig, trained: CompressionConfig) -> None:
    """Refuses a configuration in which trained weights would mean something else.

    Raises:
        ConfigError: naming what was trained otherwise.
    """
    if changed := [key for key in MEANING if getattr(config, key) != getattr(trained, key)]:
        raise ConfigError(
            f"{', '.join(changed)}: this model was trained with another value, so it would answer at random: "
            "leave that --config out, or train a model with it."
        )


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
    if "\0" in text:
        raise DataError(f"--context={name} is no text: it has zero bytes in it.")
    if not text.strip():
        raise DataError("the context is empty: give a text to ask about.")
    return text
