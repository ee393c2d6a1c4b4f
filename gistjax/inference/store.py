"""Many documents kept compressed in a folder, and asked.

import gistjax

store = gistjax.Store("manuals", gistjax.load(), ratio=8, bits=4)
store.add("pump.txt", open("pump.txt").read())
answer, pieces = store.ask("How often is the filter changed?")
print(answer.text, pieces[0].document, pieces[0].text)

Of each piece of each document the store has the text and what the compressor keeps of it. A
question is answered from the pieces that share most words with it: their entries are joined, and
their texts are not read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gistjax.data.splitting import Piece as Cut
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.inference.document import Answer, Document
from gistjax.inference.engine import Engine
from gistjax.inference.recent import Recent
from gistjax.inference.store_index import Held, Piece, StoreIndex, is_store, key_of
from gistjax.inference.text import check_text
from gistjax.runtime.quantize import check_bits
from gistjax.runtime.texts import user_path

log = logging.getLogger(__name__)

PIECES = 2
"""Pieces that a question is answered from (measured: docs/using.md)."""
TELL_S = 10
"""Seconds between two lines of progress within a document."""
OPEN_PIECES = 256
"""Pieces that stay in memory after they were read for a question."""


@dataclass(frozen=True)
class Added:
    """What became of a document that was added."""

    name: str
    pieces: int
    compressed: int  # of these: the others were there
    seconds: float  # to compress

    @property
    def unchanged(self) -> bool:
        """Whether the same text was there under this name."""
        return not self.pieces


class Told(NamedTuple):
    """An answer, and the pieces that it is from: first the one that holds it, or fits best."""

    answer: Answer
    pieces: tuple[Piece, ...]


class Store:
    """Documents in a folder, as a compressor keeps them.

    Args:
        path: the folder; it is made if it is not there.
        engine: the compressor; only the one that a store was made with reads it.
        ratio: tokens an entry or a slot, of a new store; by default the compressor's.
        bits: of each number that is kept, of a new store: 8, 4, 3 or 2; by default as they are.

    Raises:
        ConfigError: if the engine compresses nothing, or takes no such ratio or bits.
        CheckpointError: if the folder is no store, is damaged, or was made otherwise.
        StorageError: if it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        engine: Engine,
        ratio: float | None = None,
        bits: int | None = None,
    ):
        if not engine.config.compresses:
            raise ConfigError("a store keeps what a compressor makes, and this run has none.")
        if bits is not None:
            check_bits(bits)
        path = user_path(path)
        about = engine.origin()
        if not is_store(path):
            ratio = ratio or engine.config.ratio
            engine.check_ratio(ratio)
        chosen = {"ratio": ratio and float(ratio), "bits": bits}
        about |= {name: str(value) for name, value in chosen.items() if value is not None}
        self.engine, self.index = engine, StoreIndex(path, about)
        self.ratio = float(self.index.about["ratio"])
        found = self.index.about.get("bits", "")
        self.bits = int(found) if found else None
        self._open: Recent[Document] = Recent(OPEN_PIECES)

    def __repr__(self) -> str:
        bits = f", {self.bits} bits" if self.bits else ""
        documents = len(self.documents())
        return f"Store({self.index.path}, {documents} documents, ratio {self.ratio:g}{bits})"

    def documents(self) -> list[Held]:
        """Return the documents, by name."""
        return self.index.documents()

    def add(self, name: str, text: str) -> Added:
        """Keep a text under a name; the one that had it is replaced.

        A text that is there under this name costs nothing, and of a changed one only the pieces
        that are new are compressed.

        Raises:
            DataError: if name or text is empty or no text.
            CheckpointError, StorageError: if another process writes, or the disk is full; what the
                store held stays.
        """
        name, text = check_text(name, "document's name"), check_text(text, "document")
        if not name.isprintable():
            raise DataError(f"the document's name {name!r} cannot be printed: rename it.")
        with self.index.writing():
            held, sha256 = self.index.find(name), key_of(text)
            before = self.index.pieces(name)
            there = all(self.index.file(piece.key).is_file() for piece in before)
            if held and held.sha256 == sha256 and there:
                return Added(name, 0, 0, 0.0)
            cuts = self._cut(text, [piece.text for piece in before])
            new, seconds = self._compress(name, cuts)
            pieces = [
                Piece(name, place, key_of(cut.text), len(cut.ids), cut.text)
                for place, cut in enumerate(cuts)
            ]
            self.index.put(name, sha256, pieces)
        return Added(name, len(pieces), new, seconds)

    def _compress(self, name: str, cuts: Sequence[Cut]) -> tuple[int, float]:
        """Make the files of pieces that are not there; returns how many, and the seconds spent."""
        files = {self.index.file(key_of(cut.text)): cut.text for cut in cuts}
        missing = {file: text for file, text in files.items() if not file.is_file()}
        seconds, start = 0.0, time.monotonic()
        told = start
        for number, (file, text) in enumerate(missing.items(), 1):
            document = self.engine.compress(text, self.ratio, bits=self.bits)
            document.save(file)
            seconds, now = seconds + document.seconds, time.monotonic()
            if now - told > TELL_S and number < len(missing):
                left = (now - start) / number * (len(missing) - number) / 60
                log.info("%s: %d of %d pieces, %.1f min left", name, number, len(missing), left)
                told = now
        return len(missing), seconds

    def _cut(self, text: str, before: Sequence[str]) -> list[Cut]:
        """Return the pieces of a text; those that it had before stay, unless a new part fits in."""
        spans: list[tuple[int, int, bool]] = []  # begin, end, whether it is new

        def add(begin: int, end: int, new: bool) -> None:
            if not text[begin:end].strip():
                return
            if spans and (new or spans[-1][2]):
                together = spans[-1][0], end
                if len(self.engine.cut(text[slice(*together)])) == 1:
                    spans[-1] = (*together, True)
                    return
            spans.append((begin, end, new))

        start = 0
        for piece in before:
            found = text.find(piece, start)
            if found >= 0:
                add(start, found, True)
                start = found + len(piece)
                add(found, start, False)
        add(start, len(text), True)
        return [cut for begin, end, _ in spans for cut in self.engine.cut(text[begin:end])]

    def remove(self, *names: str) -> None:
        """Remove documents: their text, and what was kept of it.

        Raises:
            ConfigError: if one is not here; then all stay.
        """
        self.index.remove(names)

    def ask(
        self,
        question: str,
        pieces: int = PIECES,
        threshold: float | None = None,
        within: str | None = None,
    ) -> Told:
        """Answer a question from the pieces that fit it best.

        Args:
            pieces: the most to answer from.
            threshold: withhold an answer whose chance of being right is below.
            within: the name of the only document to look in.

        Raises:
            ConfigError: if there is no such document, or as `Document.ask`.
            DataError: if the store is empty, no piece has a word of the question, or as
                `Document.ask`.
        """
        question = check_text(question, "question")
        if not isinstance(pieces, int) or pieces < 1:
            raise ConfigError(f"pieces={pieces} must be a number from 1 on.")
        if within is not None:
            self.index.check_held([within])
        found = self.index.search(question, pieces, within)
        if not found:
            raise DataError(
                f"nothing in {within or self.index.path} has a word of the question "
                f"{question!r}: ask in its words, or add the text that answers it."
            )
        document = self.engine.join([self.open_piece(piece) for piece in found])
        answer = document.ask(question, threshold)
        told = [p for p in found if answer.text and answer.text.casefold() in p.text.casefold()]
        first = told[0] if told else found[0]
        return Told(answer, (first, *(piece for piece in found if piece is not first)))

    def open_piece(self, piece: Piece) -> Document:
        """Return what is kept of a piece."""
        file = self.index.file(piece.key)
        return self._open.get(piece.key, lambda: self.engine.open(file))

    def check(self) -> Iterator[str]:
        """Yield what is wrong with the store, a line each: damaged files, texts, index.

        Damaged files are removed: added again, a document has them again.
        """
        yield from self.index.problems()
        for held in self.documents():
            for piece in self.index.pieces(held.name):
                where = f"{held.name}, piece {piece.place + 1}"
                file = self.index.file(piece.key)
                try:
                    document = self.engine.open(file)
                    if document.tokens != piece.tokens:
                        yield f"{where}: kept of another text"
                except CheckpointError as error:
                    file.unlink(missing_ok=True)
                    yield f"{where}: {error} Add the document again: it is made anew."
