"""Documents on their way into a store: cut, what is missing read in batches, put into the index."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gistjax.data.splitting import Cut
from gistjax.errors import CheckpointError, DataError
from gistjax.inference.document import Document
from gistjax.inference.engine import Engine
from gistjax.inference.store_index import Piece, StoreIndex, key_of
from gistjax.inference.text import check_text

log = logging.getLogger(__name__)

WRITERS = 4
"""Threads that round and write the pieces of a batch: on a GPU reading them takes less time."""
PIECE_TOKENS = 512
"""Longest piece of a document, whatever the compressor reads at once: what is found and answered
from is no longer than it needs to be."""
TELL_S = 10
"""Seconds between two lines of progress within documents."""


@dataclass(frozen=True)
class Added:
    """What became of a document that was added."""

    name: str
    pieces: int
    compressed: int  # of these: the others were there
    seconds: float  # to compress
    problem: DataError | None = None  # why it was refused

    @property
    def unchanged(self) -> bool:
        """Whether the same text was there under this name."""
        return not self.pieces and not self.problem


@dataclass
class Waiting:
    """A document that is not in the index yet, and what of it is read for it."""

    place: int  # among the documents that were given
    name: str
    sha256: str  # of its text
    pieces: list[Piece]
    missing: set[str]  # keys of pieces that are not kept yet
    compressed: int  # of its pieces
    seconds: float = 0.0
    refused: bool = False


class Adding:
    """Adds documents to a store that no one else writes to.

    Args:
        ratio, bits: those of the store.
        told: called with each document that is in the index, or refused.
    """

    def __init__(
        self,
        engine: Engine,
        index: StoreIndex,
        ratio: float,
        bits: int | None,
        told: Callable[[Added], None],
    ):
        self._engine, self._index, self._ratio, self._bits = engine, index, ratio, bits
        self._told, self._added = told, dict[int, Added]()  # by the places of documents
        self._names: dict[str, str] = {}  # SHA-256 of the texts that were given
        self._waiting: dict[str, list[Waiting]] = {}  # by the keys of missing pieces
        self._start = self._logged = time.monotonic()
        self._read = 0

    def run(self, documents: Iterable[tuple[str, str]]) -> list[Added]:
        """Add names and texts; returns what became of them, in their order."""
        batches = self._engine.compress_pieces(self._missing(documents), self._ratio)
        with ThreadPoolExecutor(WRITERS) as writers:
            for batch in batches:
                for piece, problem in zip(batch, writers.map(self._write, batch), strict=True):
                    self._written(*piece, problem)
        return [self._added[place] for place in sorted(self._added)]

    def _missing(self, documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield keys and token ids of pieces that are not kept, each once."""
        for place, document in enumerate(documents):
            if not isinstance(document, tuple | list) or len(document) != 2:
                raise DataError(
                    "each document must be a pair: (name, text); of a dictionary, its .items()."
                )
            name, text = document
            try:
                yield from self._begin(place, name, text)
            except DataError as error:
                self._tell(place, Added(name, 0, 0, 0.0, error))

    def _begin(self, place: int, name: str, text: str) -> list[tuple[str, np.ndarray]]:
        """Take up a document; returns the pieces that are to be read for it.

        Raises:
            DataError: if name or text is none, or another text of that name was given.
        """
        name, text = check_text(name, "document's name"), check_text(text, "document")
        if not name.isprintable():
            raise DataError(f"the document's name {name!r} cannot be printed: rename it.")
        sha256 = key_of(text)
        if self._names.setdefault(name, sha256) != sha256:
            raise DataError(f"two documents are called {name!r}: rename one.")
        held, before = self._index.find(name), self._index.pieces(name)
        there = all(self._is_kept(piece.key, piece.tokens) for piece in before)
        if held and held.sha256 == sha256 and there:
            self._tell(place, Added(name, 0, 0, 0.0))
            return []
        cuts = cut_again(self._engine, text, [piece.text for piece in before])
        ids = {key_of(cut.text): cut.ids for cut in cuts}
        pieces = [
            Piece(name, number, key_of(cut.text), len(cut.ids), cut.text)
            for number, cut in enumerate(cuts)
        ]
        missing = {key for key, own in ids.items() if not self._is_kept(key, len(own))}
        new = [key for key in ids if key in missing and key not in self._waiting]
        document = Waiting(place, name, sha256, pieces, missing, len(new))
        if not missing:
            self._put(document)
        for key in missing:
            self._waiting.setdefault(key, []).append(document)
        return [(key, ids[key]) for key in new]

    def _is_kept(self, key: str, tokens: int) -> bool:
        """Return whether a piece's file is there, whole, and of as many tokens."""
        try:
            return self._engine.open(self._index.file(key)).tokens == tokens
        except CheckpointError:
            return False

    def _write(self, piece: tuple[str, Document]) -> DataError | None:
        """Write what is kept of a piece; returns why that is refused."""
        key, document = piece
        try:
            document.save(self._index.file(key), self._bits)
        except DataError as error:
            return error
        return None

    def _written(self, key: str, piece: Document, problem: DataError | None) -> None:
        """Put the documents into the index that have waited for a piece alone, or refuse them."""
        waiting = self._waiting.pop(key)
        waiting[0].seconds += piece.seconds
        if problem:
            for document in waiting:
                if not document.refused:
                    self._tell(document.place, Added(document.name, 0, 0, 0.0, problem))
                document.refused = True
            return
        for document in waiting:
            document.missing.remove(key)
            if not document.missing:
                self._put(document)
        self._read += 1
        self._progress()

    def _put(self, document: Waiting) -> None:
        self._index.put(document.name, document.sha256, document.pieces)
        pieces, new = len(document.pieces), document.compressed
        self._tell(document.place, Added(document.name, pieces, new, document.seconds))

    def _tell(self, place: int, added: Added) -> None:
        self._added[place] = added
        self._told(added)
        self._logged = time.monotonic()

    def _progress(self) -> None:
        """Log how many pieces wait, now and then, while no document is done."""
        now, left = time.monotonic(), len(self._waiting)
        if left and now - self._logged > TELL_S:
            minutes = (now - self._start) / self._read * left / 60
            log.info("%d pieces read, %d wait, %.1f min left for them", self._read, left, minutes)
            self._logged = now


def cut_again(engine: Engine, text: str, before: Sequence[str]) -> list[Cut]:
    """Return the pieces of a text; those that it had before stay.

    What is new is cut together with the piece before it, and with the one behind if it fits.
    """
    spans: list[tuple[int, int, bool]] = []  # begin, end, whether it is new

    def add(begin: int, end: int, new: bool) -> None:
        if not text[begin:end].strip():
            return
        if spans:
            first, _, was_new = spans[-1]
            if new or (was_new and len(engine.cut(text[first:end], PIECE_TOKENS)) == 1):
                spans[-1] = (first, end, True)
                return
        spans.append((begin, end, new))

    start = 0
    for piece in before:
        found = _find_words(text, piece, start)
        if found >= 0:
            add(start, found, True)
            start = found + len(piece)
            add(found, start, False)
    add(start, len(text), True)
    return [cut for begin, end, _ in spans for cut in engine.cut(text[begin:end], PIECE_TOKENS)]


def _find_words(text: str, piece: str, start: int) -> int:
    """Return where a piece stands in a text with white space around it, or -1."""
    found = text.find(piece, start)
    while found >= 0:
        around = text[max(found - 1, 0) : found] + text[found + len(piece) :][:1]
        if not around.strip():
            return found
        found = text.find(piece, found + 1)
    return -1
