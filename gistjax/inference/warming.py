"""What most questions of a store need, compiled before they come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from gistjax.inference import asking
from gistjax.inference.document import QUESTION_TOKENS, Document
from gistjax.inference.store import Store
from gistjax.inference.store_index import PIECES

LENGTHS = (0.5, 1.0)
"""Pieces that programs are compiled for: those of the median and of the greatest length."""
SIZES = QUESTION_TOKENS[:2]
"""Of questions: longer ones are rare."""


class Progress(NamedTuple):
    """How far it has come."""

    compiled: int
    programs: int


def warm_up(store: Store) -> Iterator[Progress]:
    """Compile a program at a time, for questions on as many pieces as the default.

    Which shapes there are depends on the store: what is kept of a question's pieces stands in
    arrays of few lengths, and of pieces that are read at once nearly all have the longest. A store
    that is empty needs nothing yet.
    """
    needed = _needed(store)
    for compiled, (documents, size) in enumerate(needed):
        yield Progress(compiled, len(needed))
        asking.prepare(store.engine, documents, size)


def _needed(store: Store) -> list[tuple[list[Document], int]]:
    """Return for each program the documents of its rows, and the length of their questions."""
    pairs: dict[Any, tuple[Document, Document]] = {}
    for part in LENGTHS:
        if pieces := store.index.about_as_long(part, 2 * PIECES):
            one, other = store.joined(pieces[-PIECES:]), store.joined(pieces[:PIECES])
            pairs[_shapes(one)] = one, other
    if pairs:
        _reserve(store, max(one.resident_bytes for one, _ in pairs.values()))
    together = asking.BATCHES if store.engine.config.selects else asking.BATCHES[:1]
    return [
        ([one, *[other] * (rows - 1)], size)
        for one, other in pairs.values()
        for size in SIZES
        for rows in together
        if rows == 1 or one is not other
    ]


def _shapes(document: Document) -> Any:
    """Return what programs that read a document depend on."""
    leaves, structure = jax.tree.flatten(document.context)
    return structure, tuple(x.shape for x in leaves)


def _reserve(store: Store, nbytes: int) -> None:
    """Let the pool begin as long as it would get: programs are compiled for its length.

    Args:
        nbytes: of the pieces of a question.
    """
    pieces = sum(held.pieces for held in store.documents())
    store.engine.pool.reserve(math.comb(pieces + 1, PIECES) * nbytes)
