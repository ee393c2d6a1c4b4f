"""Many documents kept compressed in a folder, and asked.

import gistjax

store = gistjax.Store("manuals", gistjax.load(), ratio=8, bits=4)
store.add("pump.txt", open("pump.txt").read())
told = store.ask("How often is the filter changed?")
print(told.answer.text, told.pieces[0].document, told.pieces[0].text)

Of each piece of each document the store has the text and what the compressor keeps of it. A
question is answered from the pieces that share most words with it: their entries are joined, and
their texts are not read again, unless an answer is unsure and `reread` asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gistjax.errors import CheckpointError, ConfigError, DataError, GistjaxError
from gistjax.inference import asking
from gistjax.inference.adding import Added, Adding
from gistjax.inference.asking import BATCHES
from gistjax.inference.document import Answer, Document
from gistjax.inference.engine import Engine
from gistjax.inference.recent import Recent
from gistjax.inference.rereading import check_reread, read_again
from gistjax.inference.store_index import PIECES, Held, Piece, StoreIndex
from gistjax.inference.store_place import is_store
from gistjax.inference.text import check_text
from gistjax.inference.words import place_in
from gistjax.runtime.devices import share_of_device
from gistjax.runtime.quantize import check_bits
from gistjax.runtime.texts import user_path

MOST_PIECES = 64
OPEN_BYTES = 1 << 30
"""The least budget for pieces that stay in memory after a question, alone and joined, and for what
was read of them, which is on the device."""


class Told(NamedTuple):
    """An answer, and the pieces that it is from: first the one that holds it, or fits best."""

    answer: Answer
    pieces: tuple[Piece, ...]
    reread: bool = False  # from the texts, since the first answer was unsure

    def to_json(self) -> dict[str, Any]:
        """Return what a command or a server tells of it."""
        pieces = [dataclasses.asdict(piece) for piece in self.pieces]
        answer = dataclasses.asdict(self.answer)
        return {"answer": answer, "pieces": pieces, "reread": self.reread}


def _told(answer: Answer, pieces: list[Piece], reread: bool = False) -> Told:
    """Return an answer with its pieces, first the one that holds it."""
    first = next((one for one in pieces if place_in(one.text, answer.text) >= 0), pieces[0])
    return Told(answer, (first, *(piece for piece in pieces if piece is not first)), reread)


class Store:
    """Documents in a folder, as a compressor keeps them.

    Args:
        path: the folder; it is made if it is not there.
        engine: the compressor; only the one that a store was made with reads it.
        ratio: tokens an entry or a slot, of a new store; by default the compressor's.
        bits: of each number that is kept, of a new store: 8, 4, 3 or 2; by default as they are.
        wait_s: seconds that a writer waits for another process that writes.

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
        wait_s: float = 0.0,
    ):
        if not engine.config.compresses:
            raise ConfigError("a store keeps what a compressor makes, and this run has none.")
        if bits is not None:
            check_bits(bits)
        path = user_path(path)
        about = engine.origin()
        if not is_store(path):
            if ratio == 0:
                raise ConfigError("ratio=0: a store keeps an entry or slot of so many tokens.")
            ratio = ratio or engine.config.ratio
            engine.check_ratio(ratio)
        chosen = {"ratio": ratio and float(ratio), "bits": bits}
        about |= {name: str(value) for name, value in chosen.items() if value is not None}
        self.engine, self.index = engine, StoreIndex(path, about, wait_s)
        try:
            self.ratio = float(self.index.about["ratio"])
            self.bits = int(self.index.about["bits"]) if "bits" in self.index.about else None
            engine.check_ratio(self.ratio)
        except (KeyError, ValueError, ConfigError) as error:
            raise CheckpointError(
                f"{path} does not say with which ratio and bits it was made ({error}): make it "
                "anew from the texts."
            ) from error
        self._room_bytes = share_of_device(OPEN_BYTES)
        self._open: Recent[Document] = Recent(self._room_bytes, lambda of: of.held_bytes)

    def __repr__(self) -> str:
        bits = f", {self.bits} bits" if self.bits else ""
        documents = len(self.documents())
        return f"Store({self.index.path}, {documents} documents, ratio {self.ratio:g}{bits})"

    def documents(self) -> list[Held]:
        """Return the documents, by name."""
        return self.index.documents()

    def add(self, name: str, text: str) -> Added:
        """Keep a text under a name; the one that had it is replaced.

        Of a text that is there under this name nothing is compressed, and of a changed one only the
        pieces that are new; and whatever is lost or damaged.

        Raises:
            DataError: if name or text is empty or no text.
            CheckpointError, StorageError: if another process writes, or the disk is full; what the
                store held stays.
        """
        (added,) = self.add_many([(name, text)])
        if added.problem:
            raise added.problem
        return added

    def add_many(
        self, documents: Iterable[tuple[str, str]], told: Callable[[Added], None] = lambda _: None
    ) -> list[Added]:
        """Keep texts under names, as `add` does, pieces of several documents read at once.

        One that is refused stops no other. Each is in the store as soon as all of its pieces are
        kept, so that what was interrupted goes on.

        Args:
            documents: names and texts, taken as they are needed.
            told: called with each document that is in the store, or refused.

        Returns:
            What became of them, in their order.

        Raises:
            CheckpointError, StorageError: as `add`.
        """
        adding = Adding(self.engine, self.index, self.ratio, self.bits, told)
        with self.index.writing():
            return adding.run(documents)

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
        reread: float | None = None,
    ) -> Told:
        """Answer a question from the pieces that fit it best.

        Args:
            pieces: the most to answer from.
            threshold: withhold an answer whose chance of being right is below.
            within: the name of the only document to look in.
            reread: an answer whose score is below is given again from the pieces' texts, of which
                every entry is kept; never unless given.

        Raises:
            ConfigError: if there is no such document, the compressor does not take ratio 1 to read
                again, or as `Document.ask`.
            DataError: if the store is empty, no piece has a word of the question, or as
                `Document.ask`.
        """
        (told,) = self.ask_many([question], pieces, threshold, within, reread=reread)
        if isinstance(told, GistjaxError):
            raise told
        return told

    def ask_many(
        self,
        questions: Iterable[str],
        pieces: int = PIECES,
        threshold: float | None = None,
        within: str | Sequence[str | None] | None = None,
        told: Callable[[int, Told | GistjaxError], None] = lambda *_: None,
        reread: float | None = None,
    ) -> list[Told | GistjaxError]:
        """Answer questions as `ask` does, those of about equal length together.

        Args:
            pieces, threshold, reread: as in `ask`.
            within: as in `ask` for all, or a list with that of each.
            told: called with the place of each question and what is returned for it, as soon as
                that is known.

        Returns:
            For each what it was told, or why it has no answer: that of a damaged piece, or of a
            question that cannot be asked, keeps none from theirs.

        Raises:
            ConfigError: as `ask`, but for a list of documents: of these one that is not here is
                why its question has no answer.
            DataError: if the questions are one text, or not as many as the list.
        """
        if isinstance(questions, str) or not isinstance(questions, Iterable):
            raise DataError("ask_many takes a list of questions: put the question into one.")
        if type(pieces) is not int or not 1 <= pieces <= MOST_PIECES:
            raise ConfigError(f"pieces={pieces!r} must be a number from 1 to {MOST_PIECES}.")
        if reread is not None:
            check_reread(self.engine, reread)
        questions = list(questions)
        if within is None or isinstance(within, str):
            if within is not None:
                self.index.check_held([within])
            within = [within] * len(questions)
        if len(within) != len(questions):
            count = f"{len(within)} documents for {len(questions)} questions"
            raise DataError(f"within has {count}: give one for all, or one for each.")
        results: dict[int, Told | GistjaxError] = {}

        def tell(place: int, result: Told | GistjaxError) -> None:
            results[place] = result
            told(place, result)

        asked = [*enumerate(zip(questions, within, strict=True))]
        for first in range(0, len(asked), BATCHES[-1]):
            batch = asked[first : first + BATCHES[-1]]
            self._ask_batch(batch, pieces, threshold, reread or 0.0, tell)
        return [results[place] for place in range(len(asked))]

    def _ask_batch(
        self,
        asked: Iterable[tuple[int, tuple[str, str | None]]],
        pieces: int,
        threshold: float | None,
        reread: float,
        tell: Callable[[int, Told | GistjaxError], None],
    ) -> None:
        """Tell what comes of questions with their places and documents, as soon as it is known.

        Those before are answered, and what was held for them is let go, where more would be held
        than a store keeps (`_room_bytes`).
        """
        able: list[tuple[int, list[Piece]]] = []
        pairs: list[tuple[Document, str]] = []
        held: dict[int, int] = {}  # bytes, by the document's id: questions may share one
        unsure: list[tuple[int, list[Piece], str]] = []

        def answered(number: int, answer: Answer) -> None:
            place, found = able[number]
            if answer.score < reread:
                unsure.append((place, found, pairs[number][1]))
            else:
                tell(place, _told(answer, found))

        def answered_again(number: int, answer: Answer) -> None:
            place, found, _ = unsure[number]
            tell(place, _told(answer, found, reread=True))

        for place, (question, within) in asked:
            found = self._find(question, pieces, within)
            if isinstance(found, GistjaxError):
                tell(place, found)
            else:
                able.append((place, found[0]))
                pairs.append((found[1], question))
                held[id(found[1])] = found[1].held_bytes
            if sum(held.values()) > self._room_bytes:
                asking.ask(self.engine, pairs, threshold, answered)
                able, pairs, held = [], [], {}
        asking.ask(self.engine, pairs, threshold, answered)
        again = [(found, question) for _, found, question in unsure]
        read_again(self.engine, again, threshold, answered_again)

    def _find(
        self, question: str, pieces: int, within: str | None
    ) -> tuple[list[Piece], Document] | GistjaxError:
        """Return the pieces that fit a question best, and what is kept of them; or why not."""
        try:
            question = check_text(question, "question")
            if within is not None:
                self.index.check_held([within])
            found = self._search(question, pieces, within)
            try:
                document = self.joined(found)
            except CheckpointError:
                again = self._search(question, pieces, within)
                if again == found:
                    raise
                found, document = again, self.joined(again)  # another process has replaced it
            document.check_question(question)
        except (CheckpointError, ConfigError, DataError) as error:
            return error
        return found, document

    def _search(self, question: str, pieces: int, within: str | None) -> list[Piece]:
        """Return the pieces that fit a question best.

        Raises:
            DataError: if none has a word of it.
        """
        found = self.index.search(question, pieces, within)
        if not found:
            raise DataError(
                f"nothing in {within or self.index.path} has a word of the question "
                f"{question!r}: ask in its words, or add the text that answers it."
            )
        return found

    def open_piece(self, piece: Piece) -> Document:
        """Return what is kept of a piece."""
        file = self.index.file(piece.key)
        try:
            return self._open.get(piece.key, lambda: self.engine.open(file))
        except CheckpointError as error:
            name, place = piece.document, piece.place + 1
            raise CheckpointError(
                f"{name}, piece {place}: {error} If it is damaged, add the document again."
            ) from error

    def joined(self, pieces: Sequence[Piece]) -> Document:
        """Return what is kept of pieces as one document."""
        keys = tuple(piece.key for piece in pieces)
        return self._open.get(keys, lambda: self.engine.join([*map(self.open_piece, pieces)]))

    def check(self) -> list[str]:
        """Return what is wrong with the store, a line each: files, texts, index.

        Files that no document names are removed. A document that is added again has its damaged
        files made anew.

        Raises:
            CheckpointError: if another process writes.
        """
        with self.index.writing():
            self.index.sweep()
            found = self.index.problems()
            for name, place, key, tokens in self.index.named():
                where = f"{name}, piece {place + 1}"
                try:
                    if self.engine.open(self.index.file(key)).tokens != tokens:
                        found.append(f"{where}: kept of another text: add the document again.")
                except CheckpointError as error:
                    found.append(f"{where}: {error} If it is damaged, add the document again.")
        return found
