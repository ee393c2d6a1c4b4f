"""Things of one size taken together, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

STEP = 4
"""From one number of things in a batch to the next, downwards."""


def in_batches(
    things: Iterable[T], size_of: Callable[[T], int], rows_of: Callable[[int], int]
) -> Iterator[tuple[int, list[T]]]:
    """Yield sizes, each with as many things of it as `rows_of(size)`, as soon as they are there.

    Those left at the end come in batches of a quarter as many, of a quarter of that, and so on: few
    shapes, few compilations, and no row that is read for nothing.
    """
    waiting: dict[int, list[T]] = {}
    for thing in things:
        size = size_of(thing)
        batch = waiting.setdefault(size, [])
        batch.append(thing)
        if len(batch) == rows_of(size):
            yield size, waiting.pop(size)
    for size, rest in waiting.items():
        rows = rows_of(size)
        while rest:
            rows = rows if rows <= len(rest) else max(rows // STEP, 1)
            if rows <= len(rest):
                yield size, rest[:rows]
                rest = rest[rows:]
