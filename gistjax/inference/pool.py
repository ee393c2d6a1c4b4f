"""Kept entries of many documents in one run on the device, for questions on several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from gistjax.compress.kept import entries_of, packed, size_class
from gistjax.inference.document import Document
from gistjax.model.kv_cache import PackedEntries

POOL_BYTES = 1 << 30


class Pool:
    """A run `[T, H]` of keys and one of values, in which documents have their places.

    Those that were asked last stay, within a budget; a document that is used nowhere else gives its
    place back. Where they are too short, the runs grow to twice their length: programs know few.
    Entries in few bits are unpacked here.

    Args:
        put: brings arrays to the devices.
        budget: bytes of the runs, unless the documents of one batch need more.
    """

    def __init__(self, put: Callable[[Any], Any], budget: int = POOL_BYTES):
        self._put, self._budget = put, budget
        self._runs: tuple[jax.Array, ...] = ()  # keys and values
        self._places = WeakKeyDictionary[Document, tuple[int, int]]()  # begin, end; used last: last
        self._write = jax.jit(_written, donate_argnums=0)

    @property
    def nbytes(self) -> int:
        """Bytes that the runs take."""
        return sum(run.nbytes for run in self._runs)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, documents: Sequence[Document]) -> PackedEntries:
        """Return what is kept of documents, a context each, for as many rows: tables `[L, E, K]`.

        The runs are those of today: what was returned before is lost with the next call.
        """
        for document in documents:  # a batch's own are given up last
            if document in self._places:
                self._places[document] = self._places.pop(document)
        for document in documents:
            if document not in self._places:
                self._bring(document, keep=set(documents))
        kept: list[Any] = [document.context.kept for document in documents]
        begin_Ex1 = np.array([self._places[document][0] for document in documents])[:, None]
        start_LxExK = np.stack([own.start for own in kept], 1) + begin_Ex1
        count_LxExK = np.stack([own.count for own in kept], 1)
        start, count = self._put((start_LxExK.astype(np.int32), count_LxExK))
        k_TxH, v_TxH = self._runs
        return PackedEntries(k_TxH, v_TxH, start, count, max(own.most for own in kept))

    def _bring(self, document: Document, keep: set[Document]) -> None:
        """Write a document's entries where there is room; make it, but not from some others'."""
        kept = packed(entries_of(document.context).numbers())
        entries = np.asarray(kept.k_TxH), np.asarray(kept.v_TxH)
        rows = len(entries[0])
        self._runs = tuple(  # a file may be of an engine that computes in another dtype
            run.astype(jnp.promote_types(run.dtype, own.dtype))
            for run, own in zip(self._runs, entries, strict=False)
        )
        while (begin := self._gap(rows)) is None:
            others = (other for other in self._places if other not in keep)
            given_up = next(others, None)
            if given_up is not None and 2 * self.nbytes > self._budget:
                del self._places[given_up]
            else:
                self._grow(entries)
        self._places[document] = (begin, begin + rows)
        self._runs = self._write(self._runs, self._put(entries), begin)

    def _gap(self, rows: int) -> int | None:
        """Return where so many rows are free, None if they are nowhere together."""
        begin, length = 0, len(self._runs[0]) if self._runs else 0
        for other, end in [*sorted(self._places.values()), (length, length)]:
            if other - begin >= rows:
                return begin
            begin = end
        return None

    def _grow(self, entries: tuple[np.ndarray, ...]) -> None:
        """Double the runs, or begin them with room for a document's entries."""
        rows = len(self._runs[0]) if self._runs else size_class(len(entries[0]), 1)
        zeros = self._put(tuple(np.zeros((rows, own.shape[1]), own.dtype) for own in entries))
        if self._runs:
            zeros = tuple(map(jnp.concatenate, zip(self._runs, zeros, strict=True)))
        self._runs = zeros


def _written(
    runs: tuple[jax.Array, ...], entries: tuple[jax.Array, ...], begin: int
) -> tuple[jax.Array, ...]:
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(run, own.astype(run.dtype), begin, 0)
        for run, own in zip(runs, entries, strict=True)
    )
