"""A bounded cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The values that were used last, at most `size` of them; several threads may ask for them."""

    def __init__(self, size: int):
        self._size, self._values, self._lock = size, dict[Hashable, T](), threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made first if it is not here; others wait meanwhile."""
        with self._lock:
            value = self._values.pop(key) if key in self._values else make()
            self._values[key] = value  # the last of the dictionary is the one used last
            if len(self._values) > self._size:
                del self._values[next(iter(self._values))]
            return value
