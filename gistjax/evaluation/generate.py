"""Answers to many questions: contexts compressed, answers decoded greedily, both timed."""

from __future__ import annotations

import dataclasses
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
from gistjax.compress.kept import Entries, entries_of, mask_of, put_entries
from gistjax.compress.refiner import Refiner
from gistjax.compress.rounded import round_rows
from gistjax.data.batching import evaluation_batches
from gistjax.data.example import Batch, Buckets, TokenizedExample
from gistjax.runtime.sharding import put_batch, rows_per_step, to_host

REFINED_TOGETHER = 16
"""Contexts that a device refines at a time."""


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


@dataclass(frozen=True)
class Treatment:
    """What is done to slots or kept entries before they are asked."""

    bits: int | None = None  # they are rounded as in a document that was saved in so many
    refiner: Refiner | None = None  # refines each context once
    steps: int = 0  # in so many


class Generator:
    """Answers rows with one model, compiled once for each shape of batch.

    Args:
        asks: show a context's question to what compresses it.
        treatment: of slots or kept entries.
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
        self._refined: dict[bytes, tuple[np.ndarray, Entries]] = {}  # by the context's tokens
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
        if self._treatment.refiner:
            answers.refined = self._refine(self._treatment.refiner, (trainable, frozen), rows)
        batches = evaluation_batches(rows, self._batch_size, self._buckets)
        with tqdm(total=len(rows), desc=title, unit="question", disable=None) as bar:
            for indices, host_batch in batches:
                batch: Batch = put_batch(host_batch, self._mesh)
                weights = (trainable, frozen)
                given = (*weights, *self._given(batch))
                compress = self._compile("compress", self._compress, given)
                context, seconds = _timed(compress, given)
                answers.compress_s += seconds
                context = self._with_refined(context, [rows[i] for i in indices])
                context, stored = self._stored(context, len(indices))
                question = (*weights, context, batch.tokens_BxS, batch.question_length_B)
                answer = self._compile("answer", self._answer, question)
                written, seconds = _timed(answer, question)
                answers.answer_s += seconds
                self._collect(answers, indices, *to_host((written, context.slots_B)))
                answers.stored_bytes += stored
                answers.shapes.add((batch.context_ids_ExC.shape[1], batch.tokens_BxS.shape[1]))
                bar.update(len(indices))
        return answers

    def _refine(
        self, refiner: Refiner, weights: Any, rows: Sequence[TokenizedExample]
    ) -> dict[str, Any]:
        """Refine the contexts of rows that are not yet; return what `metrics.json` says of it."""
        distinct = list({row.context_ids.tobytes(): row for row in rows}.values())
        distinct = [row for row in distinct if row.context_ids.tobytes() not in self._refined]
        steps = self._treatment.steps
        size, spent = REFINED_TOGETHER * rows_per_step(self._mesh), 0.0
        with tqdm(total=len(distinct), desc="refining", unit="context", disable=None) as bar:
            for indices, host in evaluation_batches(distinct, size, self._buckets):
                contexts = [distinct[i].context_ids for i in indices]
                tokens = host.context_ids_ExC.shape[1]
                kept, _, seconds = refiner(weights, contexts, tokens, steps, size)
                for row, ids in enumerate(contexts):
                    mask_LxKxC = mask_of(kept, row, max(len(ids), 1))
                    self._refined[ids.tobytes()] = mask_LxKxC, entries_of(kept, row)
                spent += seconds
                bar.update(len(indices))
        each = spent / max(len(distinct), 1)
        about = {"steps": steps, "contexts": len(distinct), "seconds_per_context": each}
        return {"refined": about}

    def _with_refined(
        self, context: CompressedContext, rows: Sequence[TokenizedExample]
    ) -> CompressedContext:
        """Return a compressed context with the refined entries of its first rows, if there are."""
        if not self._treatment.refiner:
            return context
        kept = jax.tree.map(np.array, to_host(context.kept))
        host = dataclasses.replace(context, kept=kept)
        for place, row in enumerate(rows):
            mask_LxKxC, entries = self._refined[row.context_ids.tobytes()]
            put_entries(host, place, entries, mask_LxKxC)
        kept = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), kept, context.kept)
        return dataclasses.replace(context, kept=kept)

    def _stored(self, context: CompressedContext, rows: int) -> tuple[CompressedContext, int]:
        """Return a context as it is stored, and the bytes of its first rows, which are real."""
        if self._treatment.bits is None:
            stored_B, size = context.stored()
            return context, size * int(to_host(stored_B)[:rows].sum())
        rounded, size_R = round_rows(to_host(context), self._treatment.bits, rows)
        rounded = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), rounded, context)
        return rounded, int(size_R.sum())

    def slots(
        self, trainable: Any, frozen: Any, rows: Sequence[TokenizedExample]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots `[B, M, …]` of a batch of distinct contexts, and the number of each."""
        _, batches = self._batches(rows)
        _, host_batch = next(iter(batches))
        context = self._compressed(trainable, frozen, host_batch)
        real = host_batch.context_id_E >= 0
        vectors, slots_B = to_host((context.vectors, context.slots_B))
        return vectors[real], slots_B[real]

    def kept(
        self, trainable: Any, frozen: Any, rows: Sequence[TokenizedExample]
    ) -> tuple[list[TokenizedExample], list[np.ndarray]]:
        """Return distinct contexts, a batch at most, and what is kept, bool `[L, K, tokens]`."""
        distinct, batches = self._batches(rows)
        found: dict[int, np.ndarray] = {}
        for indices, host_batch in batches:
            context = self._compressed(trainable, frozen, host_batch)
            mask_LxBxKxC = _masks(context.kept)
            for place, i in enumerate(indices.tolist()):
                found[i] = mask_LxBxKxC[:, place, :, : distinct[i].context_length]
        return distinct, [found[i] for i in range(len(distinct))]

    def _batches(
        self, rows: Sequence[TokenizedExample]
    ) -> tuple[list[TokenizedExample], Iterator[tuple[np.ndarray, Batch]]]:
        """Return distinct contexts, as many as a batch has, and batches of them."""
        distinct = list({row.context_id: row for row in rows}.values())[: self._batch_size]
        return distinct, evaluation_batches(distinct, self._batch_size, self._buckets)

    def _compressed(self, trainable: Any, frozen: Any, host_batch: Batch) -> CompressedContext:
        batch: Batch = put_batch(host_batch, self._mesh)
        arguments = (trainable, frozen, *self._given(batch))
        context: CompressedContext = self._compile("compress", self._compress, arguments)(
            *arguments
        )
        return context

    def _given(self, batch: Batch) -> tuple[Any, ...]:
        """Return what `CompressedLM.compress` is given of a batch."""
        asked = (batch.tokens_BxS, batch.question_length_B) if self._asks else ()
        return batch.prefix_ids_P, batch.context_ids_ExC, batch.context_length_E, *asked

    def _compile(self, name: str, function: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """Compile ahead, so that the first batch of a shape is timed like the others."""
        key = (name, *(x.shape for x in jax.tree.leaves(arguments[2:])))
        if key not in self._compiled:
            self._compiled[key] = function.lower(*arguments).compile()
        return self._compiled[key]

    def _collect(
        self, answers: Answers, indices: np.ndarray, written: Written, slots_B: np.ndarray
    ) -> None:
        n = len(indices)  # rows behind them fill the batch
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
