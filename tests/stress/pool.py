"""Trials side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def side_by_side(jobs: int, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """What the function returns for each item; each call waits for processes of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(function, items))
