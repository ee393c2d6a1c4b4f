"""What a report needs of the files of a run: said by name before a table is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistjax.errors import DataError

NUMBERS = (
    "final_em",
    "baseline_f1",
    "baseline_em",
    "accuracy_area",
    "answerable_f1",
    "baseline_accuracy_area",
    "compression_ratio",
    "effective_compression_ratio",
    "compressor_parameters",
    "trainable_parameters",
    "shuffled_f1",
    "n_examples",
    "steps",
)
"""Fields of `metrics.json` that are numbers where they are there."""


def check_metrics(metrics: Mapping[str, Any], file: Path) -> None:
    """Refuse metrics with a field that is not what its name says.

    Raises:
        DataError: naming the field.
    """
    wrong = [key for key in NUMBERS if not _is_number(metrics.get(key, 0), or_none=True)]
    wrong += [
        key for key in metrics if key.endswith("_interval") and not _is_interval(metrics[key])
    ]
    for task, block in _tasks(metrics).items():
        needed = ("final_f1", "final_em", "n_examples")
        if not (
            isinstance(block, dict)
            and all(_is_number(block.get(key)) for key in needed)
            and all(_is_interval(block[key]) for key in block if key.endswith("_interval"))
            and block.get("final_f1_interval")
        ):
            wrong.append(f"tasks.{task}")
    wrong += ["final_f1"] * (not _is_number(metrics.get("final_f1", 0)))
    seconds = metrics.get("wall_time_per_sample_s") or {}
    if not isinstance(seconds, dict) or not all(map(_is_number, seconds.values())):
        wrong.append("wall_time_per_sample_s")
    parts = metrics.get("by_type") or {}
    if not isinstance(parts, dict) or not all(map(_is_part, parts.values())):
        wrong.append("by_type")
    if wrong:
        raise DataError(f"{file} has a damaged {wrong[0]}: make that run again.")


def _tasks(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the blocks of a mixture's tasks; one that is damaged where they are no object."""
    tasks = metrics.get("tasks") or {}
    return tasks if isinstance(tasks, dict) else {"*": tasks}


def check_predictions(rows: Sequence[Any], file: Path) -> None:
    """Refuse predictions that lack a field.

    Raises:
        DataError: naming the row.
    """
    for number, row in enumerate(rows):
        if not (
            isinstance(row, dict)
            and all(isinstance(row.get(key), str) for key in ("id", "question", "prediction"))
            and isinstance(row.get("answers"), list)
            and all(_is_number(row.get(key)) for key in ("f1", "em"))
            and _is_number(row.get("score", 0))
            and isinstance(row.get("task", ""), str)
        ):
            raise DataError(f"{file} has a damaged row {number}: make that run again.")


def check_slot_attention(contexts: Sequence[Any], file: Path) -> None:
    """Refuse weights that are not a number for each slot and word.

    Raises:
        DataError: naming the context.
    """
    for number, context in enumerate(contexts):
        words, rows = (
            context.get(key) if isinstance(context, dict) else None for key in ("words", "weights")
        )
        if not (
            isinstance(words, list)
            and isinstance(rows, list)
            and rows
            and all(isinstance(row, list) and len(row) == len(words) for row in rows)
            and all(_is_number(weight) for row in rows for weight in row)
        ):
            raise DataError(f"{file} has a damaged context {number}: make that run again.")


def check_kept_entries(found: Mapping[str, Any], file: Path) -> None:
    """Refuse what is not a part for each layer and KV head, and a number for each token of a word.

    Raises:
        DataError: naming the field.
    """
    if not found:
        return
    parts, contexts = found.get("parts"), found.get("contexts")
    wrong = [key for key in ("n", "tokens") if not _is_number(found.get(key))]
    wrong += ["parts"] * (not _are_rows(parts) or len({len(row) for row in parts or [[]]}) != 1)
    wrong += ["contexts"] * (not isinstance(contexts, list) or not all(map(_is_kept, contexts)))
    if wrong:
        raise DataError(f"{file} has a damaged {wrong[0]}: make that run again.")


def _is_kept(context: Any) -> bool:
    """Whether it has words, and a row of numbers for each."""
    if not isinstance(context, dict) or not isinstance(words := context.get("words"), list):
        return False
    rows: Any = context.get("kept")
    return _are_rows(rows) and len(rows) == len(words) and all(isinstance(w, str) for w in words)


def _are_rows(rows: Any) -> bool:
    """Whether it is a list of lists of numbers, none of them empty."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, list) and row and all(map(_is_number, row)) for row in rows)
    )


def _is_number(value: Any, or_none: bool = False) -> bool:
    if value is None:
        return or_none
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_interval(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return all(map(_is_number, (part.get("n"), part.get("f1")))) and _is_interval(
        part.get("f1_interval")
    )
