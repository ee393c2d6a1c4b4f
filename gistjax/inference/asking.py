"""Questions on several documents, answered together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from gistjax.compress.context import DecodeState
from gistjax.compress.decoding import before_end
from gistjax.compress.sequence import first_position
from gistjax.data.tasks import written_tokens
from gistjax.errors import DataError
from gistjax.experiment.confidence import Confidence
from gistjax.inference.document import Answer, AnswerIds, Document
from gistjax.inference.pool import POOL_BYTES
from gistjax.inference.text import check_text

if TYPE_CHECKING:
    from gistjax.inference.engine import Engine

BATCHES = (1, 4, 16, 64)
"""Numbers of questions that are answered at once: few, as each is compiled for."""


class _Question(NamedTuple):
    place: int  # among those that were asked
    document: Document
    ids: np.ndarray


def ask(
    engine: Engine,
    asked: Iterable[tuple[Document, str]],
    threshold: float | None = None,
    told: Callable[[int, Answer], None] = lambda *_: None,
) -> list[Answer]:
    """Answer questions, each on its document (`Engine.ask`).

    Args:
        told: called with the place and the answer of each question, as soon as it has one.
    """
    confidence = Confidence(engine.calibration, threshold)
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        raise DataError("ask takes a list of pairs: (document, question).")
    checked = [_checked(engine, one) for one in asked]
    answers: dict[int, Answer] = {}
    for place, ids in _written(engine, checked):
        answers[place] = checked[place][0].answer_of(ids, confidence)
        told(place, answers[place])
    return [answers[place] for place in range(len(checked))]


def _checked(engine: Engine, one: Any) -> tuple[Document, str]:
    """Return a document and its question.

    Raises:
        DataError: if they are none, or the document is of another compressor.
    """
    pair = isinstance(one, tuple | list) and len(one) == 2
    if not pair or not isinstance(one[0], Document):
        raise DataError("each question must be a pair: (document, question).")
    if one[0].engine.origin() != engine.origin():
        raise DataError("a document is of another compressor: ask it with `document.ask`.")
    return one[0], check_text(one[1], "question")


def answer_ids(engine: Engine, asked: list[tuple[Document, str]]) -> list[AnswerIds]:
    """Return answers as tokens, in the order of the questions.

    The seconds of one are its share of its batch's.

    Raises:
        DataError: if a question is too long.
    """
    answers = dict(_written(engine, asked))
    return [answers[place] for place in range(len(asked))]


def _written(engine: Engine, asked: list[tuple[Document, str]]) -> Iterator[tuple[int, AnswerIds]]:
    """Yield the place and the answer of each question, batch by batch."""
    for size, batch in list(_batches(engine, asked)):  # all questions fit, or none is answered
        places = [question.place for question in batch]
        yield from zip(places, _answer(engine, size, batch), strict=True)


def _batches(
    engine: Engine, asked: list[tuple[Document, str]]
) -> Iterator[tuple[int, list[_Question]]]:
    """Yield questions that are answered at once, with the length that they are padded to.

    Those on entries of about one number are together, and those on one document. Slots stand among
    the positions of a cache: questions on them are of one document, and no more than have room.
    """
    alike: dict[tuple[int, Any], list[_Question]] = {}
    for place, (document, question) in enumerate(asked):
        ids = engine.pretrained.prompt.encode_question(question)
        size, kept = document.question_size(len(ids)), document.context.kept
        of = id(document) if kept is None else str(kept.k_TxH.dtype)
        alike.setdefault((size, of), []).append(_Question(place, document, ids))
    for (size, _), questions in alike.items():
        questions.sort(key=lambda one: (_most(one.document), id(one.document)))
        while questions:
            rows = rows_of(len(questions))
            if rows > 1:
                rows = min(rows, _room(questions[0].document, size))
            yield size, questions[:rows]
            questions = questions[rows:]


def _most(document: Document) -> int:
    """Return the length that each KV head's entries are padded to."""
    kept = document.context.kept
    return 0 if kept is None else kept.most


def _room(document: Document, size: int) -> int:
    """Return how many rows may have a cache of their own with a document's slots."""
    if document.context.kept is not None:
        return BATCHES[-1]
    nbytes = sum(x.nbytes for x in jax.tree.leaves(document.state(size).cache))
    return max(rows for rows in BATCHES if rows == 1 or rows * nbytes <= POOL_BYTES)


def rows_of(questions: int) -> int:
    """Return how many rows the next batch has: as many as leave less than half of them empty."""
    return max(rows for rows in BATCHES if rows < 2 * questions)


def _answer(engine: Engine, size: int, batch: list[_Question]) -> Iterator[AnswerIds]:
    """Yield the answers of a batch, in rows of which the last are padding."""
    rows = next(n for n in BATCHES if n >= len(batch))
    filled = [*batch, *batch[-1:] * (rows - len(batch))]
    documents, ids = [one.document for one in filled], [one.ids for one in filled]
    with _reading(engine, documents, size) as (state, placing_s):
        written, seconds = engine.programs.answer(state, ids, size)
    seconds += placing_s
    for row in range(len(batch)):
        ids_A = written.ids_BxA[row].tolist()
        kept = before_end(ids_A, engine.pretrained.prompt.end_ids)
        n_tokens, total = min(len(kept) + 1, len(ids_A)), float(written.log_probability_B[row])
        yield AnswerIds(kept, n_tokens, total, seconds / len(batch))


def prepare(engine: Engine, documents: list[Document], size: int) -> None:
    """Compile what answers questions of a length, one on each document."""
    with _reading(engine, documents, size) as (state, _):
        engine.programs.prepare_answer(state, len(documents), size)


@contextlib.contextmanager
def _reading(
    engine: Engine, documents: list[Document], size: int
) -> Iterator[tuple[DecodeState, float]]:
    """Keep in a `with` block what each row has read; give the seconds that it took to place it."""
    if all(document is documents[0] for document in documents):
        state, rows = documents[0].state(size), len(documents)
        yield (state.repeat(rows) if rows > 1 else state), 0.0
    else:
        with engine.pool.lent:  # until they are read, nothing else is written to the runs
            yield _placed(engine, documents, size)


def _placed(engine: Engine, documents: list[Document], size: int) -> tuple[DecodeState, float]:
    """Return what each row has read, the prompt and its document's entries; and the seconds."""
    room = size + written_tokens(engine.config)
    prompt, _ = engine.programs.prefill(documents[0].context, room)
    start, compiled_s = time.perf_counter(), engine.pool.compile_s
    kept = jax.block_until_ready(engine.pool.place(documents))
    seconds = time.perf_counter() - start - (engine.pool.compile_s - compiled_s)
    state = prompt.repeat(len(documents))
    positions = [first_position(document.context) for document in documents]
    position_B: Any = np.concatenate(positions)
    return replace(state, cache=replace(state.cache, kept=kept), position_B=position_B), seconds
