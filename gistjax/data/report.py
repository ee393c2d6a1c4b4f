"""Counts of what was skipped or cut while a data set was read and encoded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from gistjax.errors import DataError

SHOWN_IDS = 3
SHOWN_KEYS = 8
SHOWN_CHARACTERS = 30


@dataclass
class DataReport:
    """Counts by reason, each with up to three example ids. `str()` gives the text for people."""

    counts: Counter[str] = field(default_factory=Counter)
    ids: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, reason: str, example_id: str) -> None:
        """Add one row to a reason."""
        self.counts[reason] += 1
        shown = self.ids.setdefault(reason, [])
        if len(shown) < SHOWN_IDS and example_id not in shown:
            shown.append(example_id)

    def check_dropped(self, source: str, dropped: int, rows: int, most: float) -> None:
        """Refuse a source with too many bad rows.

        Args:
            most: the largest share of its rows that may be dropped.

        Raises:
            DataError: with the reasons, and what to change.
        """
        if dropped > most * rows:
            enough = math.ceil(100 * dropped / rows) / 100
            allow = f", or allow more by --config.data.max_dropped={enough:g}" if enough < 1 else ""
            raise DataError(
                f"{dropped} of {rows} rows of {source} cannot be used, which is more than a share "
                f"of {most:g}: correct them{allow}.\n{self}"
            )

    def note(self, text: str) -> None:
        """Add a line that is not about a single row."""
        self.notes.append(text)

    def of(self, task: str) -> DataReport:
        """Return the same with the task's name before each reason and note."""
        return DataReport(
            Counter({f"{task}: {reason}": n for reason, n in self.counts.items()}),
            {f"{task}: {reason}": ids for reason, ids in self.ids.items()},
            [f"{task}: {note}" for note in self.notes],
        )

    def __add__(self, other: DataReport) -> DataReport:
        total = DataReport(self.counts + other.counts, {}, self.notes + other.notes)
        for reason in total.counts:
            both = self.ids.get(reason, []) + other.ids.get(reason, [])
            total.ids[reason] = both[:SHOWN_IDS]
        return total

    def __str__(self) -> str:
        lines = list(self.notes)
        for reason, n in self.counts.items():
            lines.append(f"{reason}: {n} (e.g. {', '.join(self.ids[reason])})")
        return "\n".join(lines) or "all rows are usable"


def missing_keys(lacks: Iterable[str], row: Mapping[str, Any]) -> str:
    """Return which keys a row lacks and which it has, the first few of them."""
    has = [repr(str(key)[:SHOWN_CHARACTERS]) for key in islice(row, SHOWN_KEYS)]
    more = ", …" if len(row) > SHOWN_KEYS else ""
    return f"no {' and no '.join(map(repr, lacks))}, but {', '.join(has) or 'nothing'}{more}"
