"""Batches of static shapes: which rows stand together, and the arrays that they become.

A unit is a context and up to Q of its questions: compressed once, answered Q times. A unit's shape is the smallest context
bucket and the smallest question bucket that hold it. Batches hold units of one shape; what is left over of a shape moves
up to a larger one, so that few rows are padded far and few shapes compile.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gistjax.data.prompts import TASKS, TokenizedExample
from gistjax.errors import DataError

Ints = Any  # int32 arrays: of numpy on the host, of JAX once on the devices
Shape = tuple[int, int]  # context bucket C, question + answer bucket S
RARE = 1 / 24
"""A shape with a smaller share of the units is not worth a compilation: they move up."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """A teacher's Y most probable tokens at each of the A answer positions of N rows."""

    ids_NxAxY: Ints
    probabilities_NxAxY: Any  # fp32, sum 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """int32 arrays, right padded with 0; for training with a leading micro-batch axis K.

    Rows stand by context, `B = E·Q`. Padding contexts have length 1 and id -1, padding rows lengths 1 and 0: there is
    always something to attend to, and nothing to learn.
    """

    context_ids_ExC: Ints
    context_length_E: Ints
    context_id_E: Ints
    tokens_BxS: Ints  # question, then answer
    question_length_B: Ints
    answer_length_B: Ints  # end token included; 0 in padding rows and in evaluation
    task_B: Ints  # index into TASKS
    context_view_ExD: Any = None  # fp32, of the frozen base; where the contrastive loss asks for it
    teacher: Targets | None = None  # where the distillation loss asks for them
    ratio_E: Any = None  # fp32, context tokens a slot, where training draws them

    @property
    def questions(self) -> int:
        """Q, questions on each context."""
        return self.question_length_B.shape[-1] // self.context_length_E.shape[-1]


class TrainPlan:
    """Which rows a training step sees: a pure function of (rows, seed, step).

    In each epoch the rows of a context are dealt anew into units of up to Q, and the units are permuted; the last,
    fewer than one step takes, are left out.

    Args:
        rows: training rows.
        batch_size: contexts of a micro-batch, E.
        accumulation: micro-batches of a step, K; all have one shape.
        questions: rows of a unit, Q.
        epochs, max_steps: how long to train, as in `CompressionConfig`.
        ratios: context tokens a slot, ascending, one drawn for each context; empty leaves it to the model.
        ratio_growth: share of the training over which they come into use one after the other.
        views: of each context by its id, `[contexts, D]`, to go with the batches.
        teacher: targets for the first N rows, to go with the batches.
        seed: gives the order.
        context_buckets: context lengths C to pad to.
        question_buckets: lengths S of question + answer to pad to.

    Raises:
        DataError: if there are fewer units than one step takes, or a row fits no bucket.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedExample],
        batch_size: int,
        seed: int,
        context_buckets: Sequence[int],
        question_buckets: Sequence[int],
        accumulation: int = 1,
        questions: int = 1,
        epochs: float = 1.0,
        max_steps: int = -1,
        ratios: Sequence[float] = (),
        ratio_growth: float = 0.0,
        views: np.ndarray | None = None,
        teacher: Targets | None = None,
    ):
        self._rows, self._seed, self._views, self._teacher = rows, seed, views, teacher
        self._ratios, self._ratio_growth = tuple(ratios), ratio_growth
        self._micro, self._questions = (accumulation, batch_size), questions
        by_context: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_context.setdefault(row.context_id, []).append(i)
        self._contexts = [np.array(members) for members in by_context.values()]
        self._shapes = self._unit_shapes(context_buckets, question_buckets)
        self._common = _common_shapes(self._shapes)
        self._epoch, self._groups = -1, list[tuple[Shape, np.ndarray]]()
        self.answer_tokens = longest_answer(rows)
        self.steps_per_epoch = len(self._shapes) // (batch_size * accumulation)
        if not self.steps_per_epoch:
            kind = "rows" if questions == 1 else f"units of up to {questions} rows on a context"
            raise DataError(
                f"{len(self._shapes)} training {kind} are fewer than the {batch_size * accumulation} of one "
                f"step ({accumulation} x {batch_size} over all devices): lower --config.batch_size "
                "or --config.accumulation."
            )
        steps = int(epochs * self.steps_per_epoch)
        self.total_steps = steps if max_steps < 0 else min(steps, max_steps)

    @property
    def shapes(self) -> dict[Shape, int]:
        """Steps by shape (C, S), in the first epoch: one compilation each."""
        return dict(sorted(Counter(shape for shape, _ in self._plan(0)).items()))

    @property
    def real_token_share(self) -> float:
        """The share of an epoch's tokens that is not padding."""
        real = padded = 0
        for (C, S), units in self._plan(0):
            padded += len(units) * (C + S * self._questions)
            for unit in units:
                rows = [self._rows[i] for i in unit if i >= 0]
                real += _context_length(rows[0]) + sum(map(_tokens_length, rows))
        return real / padded

    def real_decoder_share(self, prefix: int, memory: Callable[[int], int]) -> float:
        """The share of an epoch's decoder positions that is not padding.

        Args:
            prefix: tokens before the memory.
            memory: positions that stand for a context of so many tokens; those that a short context leaves empty are
                padding.
        """
        real = padded = 0
        for (C, S), units in self._plan(0):
            padded += units.size * (prefix + memory(C) + S)
            for row in (self._rows[i] for i in units.flat if i >= 0):
                length = _context_length(row)
                real += prefix + min(length, memory(length)) + _tokens_length(row)
        return real / padded

    def rows(self, step: int) -> np.ndarray:
        """Indices `[K·E, Q]` of the rows of a step; -1 where a context has no more."""
        return self._step(step)[1]

    def batch(self, step: int) -> Batch:
        """The arrays of a step, `[K, …]`."""
        shape, units = self._step(step)
        flat = make_batch(
            [[self._rows[i] for i in u if i >= 0] for u in units], shape, self._questions
        )
        if self._views is not None:
            flat = dataclasses.replace(flat, context_view_ExD=self._views[flat.context_id_E])
        if self._teacher is not None:
            last = len(self._teacher.ids_NxAxY) - 1  # rows without a target have no use for one
            picked = np.clip(units.ravel(), 0, last)
            flat = dataclasses.replace(
                flat, teacher=jax.tree.map(lambda x: x[picked], self._teacher)
            )
        if self._ratios:
            flat = dataclasses.replace(flat, ratio_E=self._draw_ratios(step, len(units)))
        K = self._micro[0]
        return jax.tree.map(lambda x: x.reshape(K, -1, *x.shape[1:]), flat)

    def _draw_ratios(self, step: int, units: int) -> np.ndarray:
        """One for each context, of those that are in use at this step."""
        share = (step + 1) / max(self._ratio_growth * self.total_steps, 1)
        in_use = self._ratios[: max(math.ceil(min(share, 1) * len(self._ratios)), 1)]
        rng = np.random.default_rng([self._seed, step, 1])
        return rng.choice(np.asarray(in_use, np.float32), units)

    def _unit_shapes(
        self, context_buckets: Sequence[int], question_buckets: Sequence[int]
    ) -> list[Shape]:
        """The shape of every unit, whatever rows an epoch deals into it: that of the context's longest."""
        of_rows = [_shape(row, context_buckets, question_buckets) for row in self._rows]
        if self._questions == 1:
            return of_rows
        shapes = []
        for members in self._contexts:
            longest = max(of_rows[i] for i in members)
            shapes += [longest] * -(-len(members) // self._questions)
        return shapes

    def _step(self, step: int) -> tuple[Shape, np.ndarray]:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._plan(epoch)[place]

    def _plan(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            size = self._micro[0] * self._micro[1]
            units = self._deal(rng)
            order = rng.permutation(len(units))[: len(units) // size * size]
            groups = _group(order, self._shapes, self._common, size)
            self._groups = [
                (groups[i][0], units[groups[i][1]]) for i in rng.permutation(len(groups))
            ]
            self._epoch = epoch
        return self._groups

    def _deal(self, rng: np.random.Generator) -> np.ndarray:
        """Units `[units, Q]` of row indices, context by context; -1 where there are no more rows."""
        Q = self._questions
        if Q == 1:
            return np.arange(len(self._rows))[:, None]
        dealt = []
        for members in self._contexts:
            unit = np.full(-(-len(members) // Q) * Q, -1)
            unit[: len(members)] = rng.permutation(members)
            dealt.append(unit.reshape(-1, Q, order="F"))  # even shares, so that no unit is empty
        return np.concatenate(dealt)


def longest_answer(rows: Sequence[TokenizedExample]) -> int:
    """Tokens of the longest answer, end token included; 0 of no rows."""
    return max((len(row.answer_ids) for row in rows), default=0)


def evaluation_batches(
    rows: Sequence[TokenizedExample],
    batch_size: int,
    context_buckets: Sequence[int],
    question_buckets: Sequence[int],
    answers: bool = False,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row exactly once, as (row indices, batch of questions, without their answers unless they are asked for).

    Only the last batch may hold padding rows; they stand behind the real ones.

    Raises:
        DataError: if a row fits no bucket.
    """
    if not answers:
        rows = [dataclasses.replace(row, answer_ids=row.answer_ids[:0]) for row in rows]
    shapes = [_shape(row, context_buckets, question_buckets) for row in rows]
    for shape, indices in _group(np.arange(len(rows)), shapes, _common_shapes(shapes), batch_size):
        yield indices, make_batch([[rows[i]] for i in indices], shape, 1, batch_size)


def make_batch(
    units: Sequence[Sequence[TokenizedExample]],
    shape: Shape,
    questions: int = 1,
    size: int | None = None,
) -> Batch:
    """Pads each context's rows to `questions`, all to a shape, and the batch to `size` contexts."""
    E, (C, S) = size or len(units), shape
    B = E * questions
    batch = Batch(
        context_ids_ExC=np.zeros((E, C), np.int32),
        context_length_E=np.ones(E, np.int32),
        context_id_E=np.full(E, -1, np.int32),
        tokens_BxS=np.zeros((B, S), np.int32),
        question_length_B=np.ones(B, np.int32),
        answer_length_B=np.zeros(B, np.int32),
        task_B=np.zeros(B, np.int32),
    )
    for e, rows in enumerate(units):
        context_ids = rows[0].context_ids
        batch.context_ids_ExC[e, : len(context_ids)] = context_ids
        batch.context_length_E[e] = _context_length(rows[0])
        batch.context_id_E[e] = rows[0].context_id
        for b, row in enumerate(rows, e * questions):
            q, a = len(row.question_ids), len(row.answer_ids)
            batch.tokens_BxS[b, :q] = row.question_ids
            batch.tokens_BxS[b, q : q + a] = row.answer_ids
            batch.question_length_B[b], batch.answer_length_B[b] = q, a
            batch.task_B[b] = TASKS.index(row.task)
    return batch


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


def _shape(
    row: TokenizedExample, context_buckets: Sequence[int], question_buckets: Sequence[int]
) -> Shape:
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


def _context_length(row: TokenizedExample) -> int:
    return max(len(row.context_ids), 1)


def _tokens_length(row: TokenizedExample) -> int:
    return len(row.question_ids) + len(row.answer_ids)
