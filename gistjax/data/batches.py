"""Batches of static shapes: which rows stand together, and the arrays that they become.

A row's shape is the smallest context bucket and the smallest question bucket that hold it. Batches
hold rows of one shape; what is left over of a shape moves up to a larger one, so that few rows are
padded far and few shapes compile.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gistjax.data.prompts import Row
from gistjax.errors import DataError

Ints = Any  # int32 arrays: of numpy on the host, of JAX once on the devices
Shape = tuple[int, int]  # context bucket C, question + answer bucket S
RARE = 1 / 24
"""A shape with a smaller share of the rows is not worth a compilation: its rows move up."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """int32 arrays, right padded with 0; for training with a leading micro-batch axis K.

    Padding rows have lengths 1, 1 and 0 and `context_id` -1: there is always something to attend
    to, and nothing to learn.
    """

    context_ids_BxC: Ints
    context_length_B: Ints
    tokens_BxS: Ints  # question, then answer
    question_length_B: Ints
    answer_length_B: Ints  # end token included; 0 in padding rows and in evaluation
    context_id_B: Ints
    context_view_BxD: Any = None  # fp32, of the frozen base; where the contrastive loss asks for it


class TrainPlan:
    """Which rows a training step sees: a pure function of (rows, seed, step).

    Each epoch is a new permutation of all rows, of which the last, fewer than one step takes, are
    left out.

    Args:
        rows: training rows.
        batch_size: rows of a micro-batch, B.
        accumulation: micro-batches of a step, K; all have one shape.
        views: of each context by its id, `[contexts, D]`, to go with the batches.
        seed: gives the order.
        context_buckets: context lengths C to pad to.
        question_buckets: lengths S of question + answer to pad to.

    Raises:
        DataError: if there are fewer rows than one step takes, or a row fits no bucket.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        batch_size: int,
        seed: int,
        context_buckets: Sequence[int],
        question_buckets: Sequence[int],
        accumulation: int = 1,
        views: np.ndarray | None = None,
    ):
        self._rows, self._seed, self._views = rows, seed, views
        self._micro = (accumulation, batch_size)
        self._shapes = [_shape(row, context_buckets, question_buckets) for row in rows]
        self._common = _common_shapes(self._shapes)
        self._epoch, self._groups = -1, list[tuple[Shape, np.ndarray]]()
        if len(rows) < batch_size * accumulation:
            raise DataError(
                f"{len(rows)} training rows are fewer than the {batch_size * accumulation} of one "
                f"step ({accumulation} x {batch_size} over all devices): lower --config.batch_size "
                "or --config.accumulation."
            )
        self.steps_per_epoch = len(rows) // (batch_size * accumulation)

    @property
    def shapes(self) -> dict[Shape, int]:
        """Steps by shape (C, S), in the first epoch: one compilation each."""
        return dict(sorted(Counter(shape for shape, _ in self._plan(0)).items()))

    @property
    def real_token_share(self) -> float:
        """The share of an epoch's tokens that is not padding."""
        return real_token_share(self._rows, self._plan(0))

    def real_decoder_share(self, prefix: int, slots: int | None) -> float:
        """The share of an epoch's decoder positions that is not padding: a prefix, slots (or, for None, the context
        itself), question and answer.
        """
        real = padded = 0
        for (C, S), indices in self._plan(0):
            padded += len(indices) * (prefix + (C if slots is None else slots) + S)
            for row in (self._rows[i] for i in indices):
                memory = _context_length(row)
                real += (
                    prefix + (memory if slots is None else min(memory, slots)) + _tokens_length(row)
                )
        return real / padded

    def rows(self, step: int) -> np.ndarray:
        """Indices `[K·B]` of the rows of a step."""
        return self._step(step)[1]

    def batch(self, step: int) -> Batch:
        """The arrays of a step, `[K, B, …]`."""
        shape, indices = self._step(step)
        flat = make_batch([self._rows[i] for i in indices], shape)
        if self._views is not None:
            flat = dataclasses.replace(flat, context_view_BxD=self._views[flat.context_id_B])
        return jax.tree.map(lambda x: x.reshape(*self._micro, *x.shape[1:]), flat)

    def _step(self, step: int) -> tuple[Shape, np.ndarray]:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._plan(epoch)[place]

    def _plan(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            size = self._micro[0] * self._micro[1]
            order = rng.permutation(len(self._rows))[: len(self._rows) // size * size]
            groups = _group(order, self._shapes, self._common, size)
            self._groups = [groups[i] for i in rng.permutation(len(groups))]
            self._epoch = epoch
        return self._groups


def evaluation_batches(
    rows: Sequence[Row],
    batch_size: int,
    context_buckets: Sequence[int],
    question_buckets: Sequence[int],
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row exactly once, as (row indices, batch of questions without answers).

    Only the last batch may hold padding rows; they stand behind the real ones.

    Raises:
        DataError: if a row fits no bucket.
    """
    questions = [dataclasses.replace(row, answer_ids=row.answer_ids[:0]) for row in rows]
    shapes = [_shape(row, context_buckets, question_buckets) for row in questions]
    for shape, indices in _group(np.arange(len(rows)), shapes, _common_shapes(shapes), batch_size):
        yield indices, make_batch([questions[i] for i in indices], shape, batch_size)


def make_batch(rows: Sequence[Row], shape: Shape, batch_size: int | None = None) -> Batch:
    """Pads rows to a shape, and the batch to `batch_size` rows."""
    B, (C, S) = batch_size or len(rows), shape
    batch = Batch(
        context_ids_BxC=np.zeros((B, C), np.int32),
        context_length_B=np.ones(B, np.int32),
        tokens_BxS=np.zeros((B, S), np.int32),
        question_length_B=np.ones(B, np.int32),
        answer_length_B=np.zeros(B, np.int32),
        context_id_B=np.full(B, -1, np.int32),
    )
    for b, row in enumerate(rows):
        q, a = len(row.question_ids), len(row.answer_ids)
        batch.context_ids_BxC[b, : len(row.context_ids)] = row.context_ids
        batch.tokens_BxS[b, :q] = row.question_ids
        batch.tokens_BxS[b, q : q + a] = row.answer_ids
        batch.context_length_B[b] = _context_length(row)
        batch.question_length_B[b], batch.answer_length_B[b] = q, a
        batch.context_id_B[b] = row.context_id
    return batch


def real_token_share(rows: Sequence[Row], groups: Iterable[tuple[Shape, np.ndarray]]) -> float:
    """Real tokens over all tokens of padded batches, given as (shape, row indices)."""
    real = padded = 0
    for shape, indices in groups:
        real += sum(_context_length(rows[i]) + _tokens_length(rows[i]) for i in indices)
        padded += len(indices) * sum(shape)
    return real / padded if padded else 1.0


def _group(
    order: np.ndarray, shapes: Sequence[Shape], common: set[Shape], size: int
) -> list[tuple[Shape, np.ndarray]]:
    """Groups of `size` rows that fit a common shape, rows taken in the given order.

    Only the last group may be smaller. Left-over rows move to the next larger S, from the largest S
    to the next larger C.
    """
    waiting: dict[Shape, list[int]] = {}
    for place, row in enumerate(order.tolist()):
        waiting.setdefault(shapes[row], []).append(place)
    contexts, questions = _sides(shapes)
    groups: list[tuple[Shape, np.ndarray]] = []
    left: list[int] = []  # of smaller C
    for C in contexts:
        places: list[int] = []
        for S in questions:
            places = sorted(places + waiting.get((C, S), []) + (left if questions[-1] == S else []))
            if (C, S) in common:
                full = len(places) - len(places) % size
                groups += [((C, S), order[places[i : i + size]]) for i in range(0, full, size)]
                places = places[full:]
        left = places
    if left:
        groups.append(((contexts[-1], questions[-1]), order[left]))
    return groups


def _common_shapes(shapes: Sequence[Shape]) -> set[Shape]:
    """The shapes worth a compilation, and the largest, which takes the rows that are left."""
    counts = Counter(shapes)
    contexts, questions = _sides(shapes)
    common = {(C, S) for C in contexts[-1:] for S in questions[-1:]}
    left = 0
    for C in contexts:
        reached = 0
        for S in questions:
            reached += counts[C, S] + (left if questions[-1] == S else 0)
            if reached >= RARE * len(shapes):
                common.add((C, S))
                reached = 0
        left = reached
    return common


def _sides(shapes: Sequence[Shape]) -> tuple[list[int], list[int]]:
    return sorted({C for C, _ in shapes}), sorted({S for _, S in shapes})


def _shape(row: Row, context_buckets: Sequence[int], question_buckets: Sequence[int]) -> Shape:
    return (
        _bucket(_context_length(row), context_buckets, "context"),
        _bucket(_tokens_length(row), question_buckets, "question"),
    )


def _bucket(length: int, buckets: Sequence[int], name: str) -> int:
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise DataError(
            f"a {name} of {length} tokens is longer than the largest of "
            f"--config.data.{name}_buckets, {max(buckets)}: add a larger bucket."
        )
    return min(fitting)


def _context_length(row: Row) -> int:
    return max(len(row.context_ids), 1)


def _tokens_length(row: Row) -> int:
    return len(row.question_ids) + len(row.answer_ids)
