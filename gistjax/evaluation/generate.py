"""Answers to many questions: contexts compressed, answers decoded greedily, both timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.context import CompressedContext
from gistjax.compress.decoding import Written, before_end, greedy
from gistjax.data.batching import evaluation_batches
from gistjax.data.example import Batch, Buckets, TokenizedExample
from gistjax.evaluation.treatment import Treatment
from gistjax.runtime.sharding import put_batch, to_host


@dataclass
class Answers:
    """Answer token ids by row, and their cost. Compile time is not in the seconds."""

    ids: list[list[int]]
    slots: np.ndarray  # slots used, by row
    log_probabilities: np.ndarray  # of each answer, the token that ends it included
    compress_s: float = 0.0
    answer_s: float = 0.0
    stored_bytes: int = 0  # of the compressed contexts of all rows
    refined: dict[str, Any] = field(default_factory=dict)  # {"refined": steps, contexts, seconds}
    shapes: set[tuple[int, int]] = field(default_factory=set)


class Generator:
    """Answers rows with one model, compiled once for each shape of batch.

    Args:
        asks: show a context's question to what compresses it.
        treatment: of slots or kept entries, before they are asked.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[CompressedLM],
        mesh: Mesh,
        max_tokens: int,
        end_ids: Sequence[int],
        batch_size: int,
        buckets: Buckets,
        asks: bool = False,
        treatment: Treatment | None = None,
    ):
        self._treatment = treatment or Treatment()
        self._mesh, self._end_ids = mesh, end_ids
        self._batch_size, self._buckets, self._asks = batch_size, buckets, asks
        self._compiled: dict[Any, Callable[..., Any]] = {}

        def compress(
            trainable: Any,
            frozen: Any,
            prefix_ids_P: Array,
            ids_BxC: Array,
            length_B: Array,
            *question: Array,
        ) -> CompressedContext:
            model = nnx.merge(graphdef, trainable, frozen)
            asked = (question[0], question[1]) if question else None
            return model.compress(prefix_ids_P, ids_BxC, length_B, asked=asked)

        def answer(
            trainable: Any,
            frozen: Any,
            context: CompressedContext,
            tokens_BxS: Array,
            length_B: Array,
        ) -> Written:
            model = nnx.merge(graphdef, trainable, frozen)
            return greedy(model, context, tokens_BxS, length_B, max_tokens, end_ids)

        self._compress, self._answer = jax.jit(compress), jax.jit(answer)

    def __call__(
        self,
        trainable: Any,
        frozen: Any,
        rows: Sequence[TokenizedExample],
        title: str = "answering",
    ) -> Answers:
        """Answer every row. The result does not depend on the batch size."""
        answers = Answers(
            [[] for _ in rows], np.zeros(len(rows), np.int64), np.zeros(len(rows), np.float64)
        )
        weights = (trainable, frozen)
        if refined := self._treatment.refined:
            answers.refined = refined.add(weights, rows, self._mesh, self._buckets)
        with tqdm(total=len(rows), desc=title, unit="question", disable=None) as bar:
            for indices, batch in self._batches(rows):
                context, seconds = self._compressed(weights, batch)
                answers.compress_s += seconds
                context, stored = self._treatment(context, [rows[i] for i in indices])
                question = batch.tokens_BxS, batch.question_length_B
                written, seconds = self._run(self._answer, *weights, context, *question)
                answers.answer_s += seconds
                self._collect(answers, indices, *to_host((written, context.slots_B)))
                answers.stored_bytes += stored
                answers.shapes.add((batch.context_ids_ExC.shape[1], batch.tokens_BxS.shape[1]))
                bar.update(len(indices))
        return answers

    def slots(
        self, trainable: Any, frozen: Any, rows: Sequence[TokenizedExample]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots `[B, M, …]` of a batch of distinct contexts, and the number of each."""
        indices, batch = next(self._batches(self._distinct(rows)))
        context, _ = self._compressed((trainable, frozen), batch)
        vectors, slots_B = to_host((context.vectors, context.slots_B))
        return vectors[: len(indices)], slots_B[: len(indices)]

    def kept(
        self, trainable: Any, frozen: Any, rows: Sequence[TokenizedExample]
    ) -> tuple[list[TokenizedExample], list[np.ndarray]]:
        """Return distinct contexts, a batch at most, and what is kept, bool `[L, K, tokens]`."""
        distinct = self._distinct(rows)
        found: dict[int, np.ndarray] = {}
        for indices, batch in self._batches(distinct):
            context, _ = self._compressed((trainable, frozen), batch)
            mask_LxBxKxC = _masks(context.kept)
            for place, i in enumerate(indices.tolist()):
                found[i] = mask_LxBxKxC[:, place, :, : distinct[i].context_length]
        return distinct, [found[i] for i in range(len(distinct))]

    def _distinct(self, rows: Sequence[TokenizedExample]) -> list[TokenizedExample]:
        """Return rows of distinct contexts, as many as a batch has."""
        return list({row.context_id: row for row in rows}.values())[: self._batch_size]

    def _batches(self, rows: Sequence[TokenizedExample]) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yield batches on the devices; rows behind those of the indices fill them."""
        for indices, host_batch in evaluation_batches(rows, self._batch_size, self._buckets):
            yield indices, put_batch(host_batch, self._mesh)

    def _compressed(
        self, weights: tuple[Any, Any], batch: Batch
    ) -> tuple[CompressedContext, float]:
        """Compress the contexts of a batch; returns them and the seconds."""
        asked = (batch.tokens_BxS, batch.question_length_B) if self._asks else ()
        context = batch.prefix_ids_P, batch.context_ids_ExC, batch.context_length_E
        return self._run(self._compress, *weights, *context, *asked)

    def _run(self, function: Any, *arguments: Any) -> tuple[Any, float]:
        """Return what a function makes, and the seconds; compiled ahead, for each shape once."""
        key = (function, *(x.shape for x in jax.tree.leaves(arguments[2:])))
        if key not in self._compiled:
            self._compiled[key] = function.lower(*arguments).compile()
        return _timed(self._compiled[key], arguments)

    def _collect(
        self, answers: Answers, indices: np.ndarray, written: Written, slots_B: np.ndarray
    ) -> None:
        n = len(indices)
        answers.slots[indices] = slots_B[:n]
        answers.log_probabilities[indices] = written.log_probability_B[:n]
        for row, ids_A in zip(indices.tolist(), written.ids_BxA[:n].tolist(), strict=True):
            answers.ids[row] = before_end(ids_A, self._end_ids)


def _masks(kept: Any) -> np.ndarray:
    """Which entries of the cache are kept, bool `[L, B, K, C]`."""
    if isinstance(kept, tuple):
        return np.stack(to_host([layer.mask_BxKxX for layer in kept]))
    mask_LxBxKxC: np.ndarray = to_host(kept.mask_BxKxX)
    return mask_LxBxKxC


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - start
