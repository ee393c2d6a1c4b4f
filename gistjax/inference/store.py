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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gistjax.data.splitting import Piece as Cut
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.inference.document import Answer, Document
from gistjax.inference.engine import Engine
from gistjax.inference.recent import Recent
from gistjax.inference.store_index import Held, Piece, StoreIndex, key_of
from gistjax.inference.text import check_text
from gistjax.runtime.quantize import check_bits
from gistjax.runtime.texts import user_path

PIECES = 2
"""Pieces that a question is answered from (measured: docs/using.md)."""
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
        if not (path / "index.sqlite").is_file():
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
        with self.index.writing():
            held, sha256 = self.index.find(name), key_of(text)
            if held and held.sha256 == sha256:
                return Added(name, 0, 0, 0.0)
            cuts = self._cut(text, [piece.text for piece in self.index.pieces(name)])
            new, seconds = 0, 0.0
            for cut in cuts:
                file = self.index.file(key_of(cut.text))
                if not file.is_file():
                    document = self.engine.compress(cut.text, self.ratio, bits=self.bits)
                    document.save(file)
                    new, seconds = new + 1, seconds + document.seconds
            pieces = [
                Piece(name, place, key_of(cut.text), len(cut.ids), cut.text)
                for place, cut in enumerate(cuts)
            ]
            self.index.put(name, sha256, pieces)
        return Added(name, len(pieces), new, seconds)

    def _cut(self, text: str, before: Sequence[str]) -> list[Cut]:
        """Return the pieces of a text; those that it had before stay as they were."""
        cuts: list[Cut] = []
        start = 0
        for piece in before:
            found = text.find(piece, start)
            if found < 0:
                continue
            if between := text[start:found].strip():
                cuts += self.engine.cut(between)
            cuts += self.engine.cut(piece)
            start = found + len(piece)
        if rest := text[start:].strip():
            cuts += self.engine.cut(rest)
        return cuts

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
        parts = [self.open_piece(piece) for piece in found]
        document = parts[0] if len(parts) == 1 else self.engine.join(parts)
        answer = document.ask(question, threshold)
        told = [p for p in found if answer.text and answer.text.casefold() in p.text.casefold()]
        first = told[0] if told else found[0]
        return Told(answer, (first, *(piece for piece in found if piece is not first)))

    def open_piece(self, piece: Piece) -> Document:
        """Return what is kept of a piece."""
        file = self.index.file(piece.key)
        return self._open.get(piece.key, lambda: self.engine.open(file))

    def check(self) -> Iterator[str]:
        """Yield what is wrong with the store, a line each: damaged files, texts, index."""
        yield from self.index.problems()
        for held in self.documents():
            for piece in self.index.pieces(held.name):
                try:
                    document = self.engine.open(self.index.file(piece.key))
                    if document.tokens != piece.tokens:
                        yield f"{held.name}, piece {piece.place}: kept of another text"
                except CheckpointError as error:
                    yield f"{held.name}, piece {piece.place}: {error}"
