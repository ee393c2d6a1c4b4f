"""Answers of one scorer in every cell, in a file that grows: nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistjax.errors import DataError
from gistjax.runtime.files import write_json

COLUMNS = ("prediction", "f1", "em", "entries")
ALL, NOTHING = "full_context", "closed_book"
"""Names in place of a scorer's, with a cell of the same name."""


@dataclass(frozen=True)
class Cell:
    """A column of answers: where a budget goes, and how large it is."""

    spread: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.spread}@{self.ratio:g}"


class Answers:
    """The answers of one scorer about contexts of one kind.

    Args:
        path: the file, read if it is there.
        of: what the answers depend on; a file of something else is refused.
        asked: ids, contexts and context tokens of all questions, `[N]` each.

    Raises:
        DataError: if the file is damaged, or of another model or other questions.
    """

    def __init__(self, path: Path, of: Mapping[str, Any], asked: Mapping[str, Sequence[Any]]):
        self.path, self._place = path, {id: i for i, id in enumerate(asked["ids"])}
        self.content: dict[str, Any] = {
            "of": dict(of),
            **{key: list(values) for key, values in asked.items()},
            "cells": {},
            "seconds": {},
        }
        if path.exists():
            found = read(path)
            changed = [key for key in of if found["of"].get(key) != of[key]]
            if changed or found["ids"] != self.content["ids"]:
                raise DataError(
                    f"{path} has answers of other {', '.join(changed) or 'ids'}: "
                    "give another --output, or the run, data and settings that it was made with."
                )
            self.content = found

    def missing(self, cells: Iterable[Any]) -> list[int]:
        """Places of the questions that lack an answer in one of the cells."""
        columns = [self._column(cell)["prediction"] for cell in cells]
        return [i for i in self._place.values() if any(column[i] is None for column in columns)]

    def put(self, cell: Any, place: int, values: Sequence[Any]) -> None:
        """Keep an answer, its scores, and the entries that it was read from."""
        for key, value in zip(COLUMNS, values, strict=True):
            self._column(cell)[key][place] = value

    def _column(self, cell: Any) -> dict[str, list[Any]]:
        n = len(self._place)
        column: dict[str, list[Any]] = self.content["cells"].setdefault(
            str(cell), {key: [None] * n for key in COLUMNS}
        )
        return column

    def spend(self, device: str, contexts: int, seconds: Mapping[str, float]) -> None:
        """Add the seconds that contexts took on a device; those of another are forgotten."""
        spent = self.content["seconds"]
        if spent.get("device") != device:
            spent = self.content["seconds"] = {"device": device, "contexts": 0}
        spent["contexts"] += contexts
        for kind, value in seconds.items():
            spent[kind] = spent.get(kind, 0.0) + value

    def write(self) -> None:
        """Write the file, whole or not at all."""
        write_json(self.path, self.content, indent=None)


def read(path: Path) -> dict[str, Any]:
    """Return the content of a file of answers.

    Raises:
        DataError: if it is none.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        n = len(content["ids"])
        columns = [x for cell in content["cells"].values() for x in cell.values()]
        if any(len(x) != n for x in (*columns, content["context_ids"], content["tokens"])):
            raise ValueError("columns of unequal length")
        return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error}): move it away.") from error


def complete(content: Mapping[str, Any]) -> list[str]:
    """Return the cells in which every question is answered."""
    cells = content["cells"].items()
    return [name for name, columns in cells if None not in columns["prediction"]]


def as_predictions(content: Mapping[str, Any], cell: str) -> list[dict[str, Any]]:
    """Return a cell's answers as the `predictions.json` of a run, for `gistjax.compare`."""
    columns = content["cells"][cell]
    names = ("id", "context_id", "prediction", "f1", "em")
    values = (content["ids"], content["context_ids"], *(columns[key] for key in COLUMNS[:3]))
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
