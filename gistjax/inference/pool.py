"""Kept entries of many documents in one run on the device, for questions on several at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from gistjax.compress.kept import entries_of, packed, size_class
from gistjax.errors import DataError
from gistjax.inference.document import Document
from gistjax.model.kv_cache import PackedEntries
from gistjax.runtime.devices import share_of_device

POOL_BYTES = 1 << 30
STEP = 4
"""From one length of the runs to the next: programs are compiled for few."""


class Pool:
    """A run `[T, H]` of keys and one of values, in which documents have their places.

    Those that were asked last stay, within a budget; a document that is used nowhere else gives its
    place back. Entries in few bits are unpacked here. Who reads the runs holds `lent` meanwhile.

    Args:
        put: brings arrays to the devices.
        budget: bytes of the runs, unless the documents of one batch need more; by default
            `POOL_BYTES`, or a share of the device's memory if that is more.
    """

    def __init__(self, put: Callable[[Any], Any], budget: int | None = None):
        self._put, self._budget = put, budget or share_of_device(POOL_BYTES)
        self._first = self._budget // STEP**2
        self.lent = threading.Lock()
        self.compile_s = 0.0
        self._runs: tuple[jax.Array, ...] = ()  # keys and values
        self._places = WeakKeyDictionary[Document, tuple[int, int]]()  # begin, end; last used last
        self._compiled: dict[Any, Any] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that the runs take."""
        return sum(run.nbytes for run in self._runs)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, document: Document) -> bool:
        return document in self._places

    def reserve(self, nbytes: int) -> None:
        """Begin runs with room for so much, within the budget: they need not grow later."""
        self._first = max(self._first, min(nbytes, self._budget))

    def place(self, documents: Sequence[Document]) -> PackedEntries:
        """Return what is kept of documents, a context each, for as many rows: tables `[L, E, K]`.

        The next call may write over the runs: read them before. Entries of another dtype than those
        before begin new ones.

        Raises:
            DataError: if an entry is not finite: it would be in the sums of its neighbours.
        """
        try:
            return self._place(documents)
        except BaseException:  # out of memory, or interrupted: what is written is not known
            self._clear()
            raise

    def _place(self, documents: Sequence[Document]) -> PackedEntries:
        kept: list[Any] = [document.context.kept for document in documents]
        other = self._runs and self._runs[0].dtype != kept[0].k_TxH.dtype
        if other or self.nbytes > self._budget:
            self._clear()
        for document in documents:  # those of this batch are evicted last
            if document in self._places:
                self._places[document] = self._places.pop(document)
        for document in documents:
            if document not in self._places:
                self._bring(document, keep=set(documents))
        begin_Ex1 = np.array([self._places[document][0] for document in documents])[:, None]
        start_LxExK = np.stack([own.start for own in kept], 1) + begin_Ex1
        count_LxExK = np.stack([own.count for own in kept], 1)
        start, count = self._put((start_LxExK.astype(np.int32), count_LxExK))
        k_TxH, v_TxH = self._runs
        return PackedEntries(k_TxH, v_TxH, start, count, max(own.most for own in kept))

    def _clear(self) -> None:
        self._runs = ()
        self._places.clear()

    def _bring(self, document: Document, keep: set[Document]) -> None:
        """Write a document's entries where there is room; evict others for it, none of `keep`."""
        kept = packed(entries_of(document.context).numbers())
        entries = np.asarray(kept.k_TxH), np.asarray(kept.v_TxH)
        if not all(np.isfinite(own).all() for own in entries):
            raise DataError(f"{document} has numbers that are not finite: compress its text again.")
        rows = len(entries[0])
        while (begin := self._gap(rows)) is None:
            evicted = next((other for other in self._places if other not in keep), None)
            if evicted is not None and STEP * self.nbytes > self._budget:
                del self._places[evicted]
            else:
                self._grow(entries)
        self._runs = self._write(self._put(entries), begin)
        self._places[document] = (begin, begin + rows)

    def _gap(self, rows: int) -> int | None:
        """Return where so many rows are free, None if they are nowhere together."""
        begin, length = 0, len(self._runs[0]) if self._runs else 0
        for other, end in [*sorted(self._places.values()), (length, length)]:
            if other - begin >= rows:
                return begin
            begin = end
        return None

    def _grow(self, entries: tuple[np.ndarray, ...]) -> None:
        """Make the runs longer, or begin them with a part of the budget."""
        if self._runs:
            more = (STEP - 1) * len(self._runs[0])
            self._runs = tuple(jnp.pad(run, ((0, more), (0, 0))) for run in self._runs)
            return
        row = sum(own[0].nbytes for own in entries)
        rows = size_class(max(self._first // row, len(entries[0])), 1)
        if rows * row > self._budget and rows // 2 >= len(entries[0]):
            rows //= 2
        self._runs = self._put(tuple(np.zeros((rows, own.shape[1]), own.dtype) for own in entries))

    def _write(self, entries: tuple[jax.Array, ...], begin: int) -> tuple[jax.Array, ...]:
        """Return the runs with entries in them; what they were is gone."""
        given = self._runs, entries, np.int32(begin)
        shapes = len(self._runs[0]), len(entries[0]), self._runs[0].dtype
        if shapes not in self._compiled:
            start = time.perf_counter()
            self._compiled[shapes] = jax.jit(_written, donate_argnums=0).lower(*given).compile()
            self.compile_s += time.perf_counter() - start
        written: tuple[jax.Array, ...] = self._compiled[shapes](*given)
        return written


def _written(
    runs: tuple[jax.Array, ...], entries: tuple[jax.Array, ...], begin: jax.Array
) -> tuple[jax.Array, ...]:
    """Return runs with entries in them, written in place.

    Of 16 bits as integers: a CPU would make a whole run 32 bits wide for it, and cut them again.
    """

    def written(run: jax.Array, own: jax.Array) -> jax.Array:
        dtype = jnp.uint16 if run.dtype.itemsize == 2 else run.dtype
        bits, own_bits = (jax.lax.bitcast_convert_type(x, dtype) for x in (run, own))
        bits = jax.lax.dynamic_update_slice_in_dim(bits, own_bits, begin, 0)
        return jax.lax.bitcast_convert_type(bits, run.dtype)

    return tuple(written(run, own) for run, own in zip(runs, entries, strict=True))
