"""Questions on several documents, answered together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
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
from gistjax.inference.pool import Pool
from gistjax.inference.text import check_text
from gistjax.runtime.sharding import replicated

if TYPE_CHECKING:
    from gistjax.inference.engine import Engine

BATCHES = (1, 4, 16, 64)
"""Numbers of questions that are answered at once; those that a batch lacks are padding."""


class _Question(NamedTuple):
    place: int  # among those that were asked
    document: Document
    ids: np.ndarray


class Asking:
    """Answers questions on documents of one engine, those of about equal length together."""

    def __init__(self, engine: Engine):
        self._engine, self._one = engine, threading.Lock()  # a pool's runs are lent to one batch
        sharding = replicated(engine.pretrained.mesh)
        self.pool = Pool(lambda arrays: jax.device_put(arrays, sharding))

    def ask(
        self, asked: Sequence[tuple[Document, str]], threshold: float | None = None
    ) -> list[Answer]:
        """Answer questions, each on its document (`Engine.ask`)."""
        confidence = Confidence(self._engine.calibration, threshold)
        if any(document.engine is not self._engine for document, _ in asked):
            raise DataError("a document is of another engine: ask each of its own.")
        asked = [(document, check_text(question, "question")) for document, question in asked]
        return [
            document.answer_of(answer, confidence)
            for (document, _), answer in zip(asked, self.answer_ids(asked), strict=True)
        ]

    def answer_ids(self, asked: Sequence[tuple[Document, str]]) -> list[AnswerIds]:
        """Return answers as tokens, in the order of the questions.

        The seconds of one are its share of its batch's.

        Raises:
            DataError: if a question is too long.
        """
        batches = list(self._batches(asked))  # all questions fit, or none is answered
        answers: dict[int, AnswerIds] = {}
        with self._one:
            for size, batch in batches:
                for question, answer in zip(batch, self._answer(size, batch), strict=True):
                    answers[question.place] = answer
        return [answers[place] for place in range(len(asked))]

    def _answer(self, size: int, batch: list[_Question]) -> Iterator[AnswerIds]:
        """Yield the answers of a batch."""
        rows = next(n for n in BATCHES if n >= len(batch))
        filled = [*batch, *batch[-1:] * (rows - len(batch))]
        state = self._state([question.document for question in filled], size)
        ids = [question.ids for question in filled]
        written, seconds = self._engine.programs.answer(state, ids, size)
        for row in range(len(batch)):
            ids_A = written.ids_BxA[row].tolist()
            kept = before_end(ids_A, self._engine.pretrained.prompt.end_ids)
            n_tokens, total = min(len(kept) + 1, len(ids_A)), float(written.log_probability_B[row])
            yield AnswerIds(kept, n_tokens, total, seconds / len(batch))

    def _batches(
        self, asked: Sequence[tuple[Document, str]]
    ) -> Iterator[tuple[int, list[_Question]]]:
        """Yield questions that are padded to one length, as many as are answered at once.

        Slots stand among the positions of a cache: questions on them are of one document.
        """
        alike: dict[tuple[int, int], list[_Question]] = {}
        prompt = self._engine.pretrained.prompt
        for place, (document, question) in enumerate(asked):
            ids = prompt.encode_question(question)
            size = document.question_size(len(ids))
            cache = 0 if document.context.kept is not None else id(document)
            alike.setdefault((size, cache), []).append(_Question(place, document, ids))
        for (size, _), questions in alike.items():
            for first in range(0, len(questions), BATCHES[-1]):
                yield size, questions[first : first + BATCHES[-1]]

    def _state(self, documents: list[Document], size: int) -> DecodeState:
        """Return what was read for each row: the prompt, and what is kept of its document."""
        first = documents[0]
        if all(document is first for document in documents):
            state = first.state(size)
            return state.repeat(len(documents)) if len(documents) > 1 else state
        room = size + written_tokens(self._engine.config)
        one, _ = self._engine.programs.prefill(first.context, room)
        state = one.repeat(len(documents))
        cache = replace(state.cache, kept=self.pool.place(documents))
        positions = [first_position(document.context) for document in documents]
        position_B: Any = np.concatenate(positions)
        return replace(state, cache=cache, position_B=position_B)
