"""A bounded cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The values that were used last, within a size; several threads may ask for them.

    Args:
        size: of all values together; the one used last stays however large it is.
        weigh: tells the size of a value, by default 1. It is asked when the value is, and once more
            when the next is: a value may grow as it is used.
    """

    def __init__(self, size: int, weigh: Callable[[T], int] = lambda _: 1):
        self._size, self._weigh = size, weigh
        self._values, self._sizes = dict[Hashable, T](), dict[Hashable, int]()
        self._lock = threading.RLock()  # to make one, others may be asked for

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> list[T]:
        """Return the values, that used last at the end."""
        with self._lock:
            return list(self._values.values())

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made first if it is not here; others wait meanwhile."""
        with self._lock:
            value = self._values[key] if key in self._values else make()
            last = next(reversed(self._values), key)
            self._values.pop(key, None)
            self._values[key] = value  # the last of the dictionary is the one used last
            for known in (last, key):
                self._sizes[known] = self._weigh(self._values[known])
            total = sum(self._sizes.values())
            while total > self._size and len(self._values) > 1:
                oldest = next(iter(self._values))
                del self._values[oldest]
                total -= self._sizes.pop(oldest)
            return value
