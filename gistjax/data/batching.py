"""Batches of static shapes: the rows that share a batch, and the arrays that they become.

A unit is a context and up to Q of its questions: compressed once, answered Q times. Its shape is
the smallest context bucket and the smallest question bucket that hold it. A batch has units of one
shape; units that are left over move up to a larger shape, so that few rows are padded far and few
shapes compile.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from gistjax.config import CompressionConfig
from gistjax.data.draws import draw_joined, draw_ratios, ratios_in_use
from gistjax.data.example import OBJECTIVES, Batch, Buckets, Shape, Targets, TokenizedExample
from gistjax.errors import DataError

RARE = 1 / 24  # a shape with a smaller share of the units is not worth a compilation


@dataclass(frozen=True)
class PlanSettings:
    """Sizes of a step, the order of rows, and the duration of training."""

    batch_size: int  # E, contexts of a micro-batch over all devices
    seed: int = 0  # gives the order
    accumulation: int = 1  # K, micro-batches of a step; all have one shape
    questions: int = 1  # Q, rows of a unit
    epochs: float = 1.0
    max_steps: int = -1  # -1 follows the epochs
    ratios: tuple[float, ...] = ()  # context tokens a slot, ascending; one is drawn for a context
    ratio_growth: float = 0.0  # share of the training over which the ratios come into use
    ratios_a_row: int = 0  # drawn for each row in place of each context
    joined: int = 1  # most contexts of a micro-batch that questions on one of them read
    bits: tuple[int, ...] = ()  # of kept entries; one is drawn for each row
    kvzip_chooses: float | None = None  # share of the training, where a scorer is trained

    @classmethod
    def of(cls, config: CompressionConfig, devices: int = 1) -> PlanSettings:
        """Return the settings of a run.

        Args:
            devices: device groups that each take `config.batch_size` contexts.
        """
        return cls(
            batch_size=config.batch_size * devices,
            seed=config.seed,
            accumulation=config.accumulation,
            questions=config.data.questions_per_context,
            epochs=config.epochs,
            max_steps=config.max_steps,
            ratios=config.ratios,
            ratio_growth=config.ratio_growth,
            ratios_a_row=config.ratios_per_question if config.selects else 0,
            joined=config.select.joined,
            bits=config.select.bits if config.rounds else (),
            kvzip_chooses=config.select.warmup if config.learns_scores else None,
        )

    def check_enough(self, units: float) -> None:
        """Refuse training units that are fewer than one step takes.

        Raises:
            DataError: saying what to lower.
        """
        E, K, Q = self.batch_size, self.accumulation, self.questions
        if units < E * K:
            kind = "rows" if Q == 1 else f"units of up to {Q} rows on a context"
            raise DataError(
                f"{int(units)} training {kind} are fewer than the {E * K} of one step ({K} x {E} "
                "over all devices): lower --config.batch_size or --config.accumulation."
            )


class TrainPlan:
    """The rows of every training step: a pure function of (rows, seed, step).

    In each epoch the rows of a context are dealt into new units of up to Q, and the units are
    permuted; the last ones, fewer than one step takes, are left out.

    Args:
        rows: training rows.
        buckets: lengths to pad to.
        settings: sizes, seed and duration.
        views: one of each context by its id, `[contexts, D]`, to go with the batches.
        teacher: targets for the first N rows, to go with the batches.

    Raises:
        DataError: if there are fewer units than one step takes, or a row fits no bucket.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedExample],
        buckets: Buckets,
        settings: PlanSettings,
        views: np.ndarray | None = None,
        teacher: Targets | None = None,
    ):
        self._rows, self._settings = rows, settings
        self._views, self._teacher = views, teacher
        batch_size, accumulation = settings.batch_size, settings.accumulation
        by_context: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_context.setdefault(row.context_id, []).append(i)
        self._contexts = [np.array(members) for members in by_context.values()]
        self._shapes = self._unit_shapes(buckets)
        self._common = _common_shapes(self._shapes)
        self._epoch, self._groups = -1, list[tuple[Shape, np.ndarray]]()
        self.answer_tokens = longest_answer(rows)
        self.steps_per_epoch = len(self._shapes) // (batch_size * accumulation)
        settings.check_enough(len(self._shapes))
        self.total_steps = total_steps(settings.epochs, self.steps_per_epoch, settings.max_steps)

    @property
    def units(self) -> int:
        """Number of units of an epoch."""
        return len(self._shapes)

    @property
    def tokens_per_unit(self) -> float:
        """Mean number of answer tokens of a unit, end tokens included."""
        return sum(len(row.answer_ids) for row in self._rows) / self.units

    @property
    def shapes(self) -> dict[Shape, int]:
        """Number of steps by shape (C, S) in the first epoch; each shape is compiled once."""
        return dict(sorted(Counter(shape for shape, _ in self._plan(0)).items()))

    def real_decoder_share(self, prefix: int, memory: Callable[[int], int]) -> float:
        """Return the share of an epoch's decoder positions that is not padding.

        Args:
            prefix: tokens before the compressed context.
            memory: positions that stand for a context of so many tokens; those that a short context
                leaves empty are padding.
        """
        real = padded = 0
        for (C, S), units in self._plan(0):
            padded += units.size * (prefix + memory(C) + S)
            for row in (self._rows[i] for i in units.flat if i >= 0):
                length = row.context_length
                real += prefix + min(length, memory(length)) + row.tokens_length
        return real / padded

    def rows(self, step: int) -> np.ndarray:
        """Return the row indices `[K·E, Q]` of a step; -1 where a context has no more."""
        return self._step(step)[1]

    def shape(self, step: int) -> Shape:
        """Return the lengths (C, S) that a step's rows are padded to."""
        return self._step(step)[0]

    def batch(self, step: int, of: tuple[int, int] | None = None) -> Batch:
        """Return the arrays of a step, `[K, …]`.

        Args:
            of: the step within a mixture and the mixture's number of steps, by which ratios and
                bits are drawn; by default this plan's own.
        """
        shape, units = self._step(step)
        settings, of = self._settings, of or (step, self.total_steps)
        units = _copied(units, settings.ratios_a_row or 1)
        flat = make_batch(
            [[self._rows[i] for i in u if i >= 0] for u in units], shape, units.shape[1]
        )
        if self._views is not None:
            flat = dataclasses.replace(flat, context_view_ExD=self._views[flat.context_id_E])
        if self._teacher is not None:
            last = len(self._teacher.ids_NxAxY) - 1  # rows without a target have no use for one
            picked = np.clip(units.ravel(), 0, last)
            flat = dataclasses.replace(
                flat, teacher=jax.tree.map(lambda x: x[picked], self._teacher)
            )
        if settings.ratios:
            in_use = ratios_in_use(settings.ratios, settings.ratio_growth, *of)
            drawn = draw_ratios([settings.seed, of[0], 1], in_use, units, settings.ratios_a_row)
            flat = dataclasses.replace(flat, ratio_N=drawn)
        if settings.joined > 1:
            ids_KxE = np.asarray(flat.context_id_E).reshape(settings.accumulation, -1)
            drawn = draw_joined([settings.seed, of[0], 3], ids_KxE, settings.joined)
            flat = dataclasses.replace(flat, joined_ExG=drawn)
        if settings.bits:
            rng = np.random.default_rng([settings.seed, of[0], 2])
            drawn = rng.choice(np.asarray(settings.bits, np.int32), units.size)
            flat = dataclasses.replace(flat, bits_B=drawn)
        K = settings.accumulation
        if settings.kvzip_chooses is not None:
            chooses = np.full(K, of[0] < settings.kvzip_chooses * of[1])
            flat = dataclasses.replace(flat, kvzip_chooses_1=chooses)
        flat = dataclasses.replace(flat, prefix_ids_P=np.tile(flat.prefix_ids_P, K))
        batch: Batch = jax.tree.map(lambda x: x.reshape(K, -1, *x.shape[1:]), flat)
        return batch

    def _unit_shapes(self, buckets: Buckets) -> list[Shape]:
        """Return the shape of every unit.

        It is that of the context's longest row, whichever rows an epoch deals into the unit.
        """
        of_rows = [buckets.shape_of(row) for row in self._rows]
        if self._settings.questions == 1:
            return of_rows
        shapes = []
        for members in self._contexts:
            longest = max(of_rows[i] for i in members)
            shapes += [longest] * -(-len(members) // self._settings.questions)
        return shapes

    def _step(self, step: int) -> tuple[Shape, np.ndarray]:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._plan(epoch)[place]

    def _plan(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        if epoch != self._epoch:
            rng = np.random.default_rng([self._settings.seed, epoch])
            size = self._settings.accumulation * self._settings.batch_size
            units = self._deal(rng)
            order = rng.permutation(len(units))[: len(units) // size * size]
            groups = _group(order, self._shapes, self._common, size)
            self._groups = [
                (groups[i][0], units[groups[i][1]]) for i in rng.permutation(len(groups))
            ]
            self._epoch = epoch
        return self._groups

    def _deal(self, rng: np.random.Generator) -> np.ndarray:
        """Deal row indices into units `[units, Q]`, by context; -1 where there are no more rows."""
        Q = self._settings.questions
        if Q == 1:
            return np.arange(len(self._rows))[:, None]
        dealt = []
        for members in self._contexts:
            unit = np.full(-(-len(members) // Q) * Q, -1)
            unit[: len(members)] = rng.permutation(members)
            dealt.append(unit.reshape(-1, Q, order="F"))  # even shares, so that no unit is empty
        return np.concatenate(dealt)


def _copied(units: np.ndarray, n: int) -> np.ndarray:
    """Repeat the rows of each unit n times, `[K·E, n·Q]`; those that are missing stay last."""
    copied = np.tile(units, (1, n))
    return np.take_along_axis(copied, np.argsort(copied < 0, axis=1, kind="stable"), axis=1)


def total_steps(epochs: float, steps_per_epoch: float, max_steps: int = -1) -> int:
    """Return the whole steps of a training; -1 as `max_steps` is no limit.

    What a float leaves of a decimal fraction is no missing step: 1.16 epochs of 25 steps are 29.
    """
    steps = math.floor(round(epochs * steps_per_epoch, 6))
    return steps if max_steps < 0 else min(steps, max_steps)


def longest_answer(rows: Sequence[TokenizedExample]) -> int:
    """Return the tokens of the longest answer, end token included; 0 without rows."""
    return max((len(row.answer_ids) for row in rows), default=0)


def evaluation_batches(
    rows: Sequence[TokenizedExample],
    batch_size: int,
    buckets: Buckets,
    answers: bool = False,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield every row once, as (row indices, batch); those of one prompt after another.

    Only the last batch of a prompt may hold padding rows, after the real ones.

    Args:
        answers: also give the answers of the rows; by default the questions alone.

    Raises:
        DataError: if a row fits no bucket.
    """
    if not answers:
        rows = [dataclasses.replace(row, answer_ids=row.answer_ids[:0]) for row in rows]
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row.prefix_ids, []).append(i)
    for members in by_prompt.values():
        shapes = [buckets.shape_of(rows[i]) for i in members]
        groups = _group(np.arange(len(members)), shapes, _common_shapes(shapes), batch_size)
        for shape, places in groups:
            indices = np.array(members)[places]
            yield indices, make_batch([[rows[i]] for i in indices], shape, 1, batch_size)


def make_batch(
    units: Sequence[Sequence[TokenizedExample]],
    shape: Shape,
    questions: int = 1,
    size: int | None = None,
) -> Batch:
    """Pads each context's rows to `questions`, all to a shape, and the batch to `size` contexts.

    Raises:
        ValueError: if the rows' prompts differ before the context.
    """
    E, (C, S) = size or len(units), shape
    B = E * questions
    prefixes = {row.prefix_ids for rows in units for row in rows} or {()}
    if len(prefixes) > 1:
        raise ValueError(f"{len(prefixes)} different prompts cannot share a batch")
    batch = Batch(
        prefix_ids_P=np.array(prefixes.pop(), np.int32),
        context_ids_ExC=np.zeros((E, C), np.int32),
        context_length_E=np.ones(E, np.int32),
        context_id_E=np.full(E, -1, np.int32),
        tokens_BxS=np.zeros((B, S), np.int32),
        question_length_B=np.ones(B, np.int32),
        answer_length_B=np.zeros(B, np.int32),
        objective_B=np.zeros(B, np.int32),
    )
    for e, rows in enumerate(units):
        context_ids = rows[0].context_ids
        batch.context_ids_ExC[e, : len(context_ids)] = context_ids
        batch.context_length_E[e] = rows[0].context_length
        batch.context_id_E[e] = rows[0].context_id
        for b, row in enumerate(rows, e * questions):
            q, a = len(row.question_ids), len(row.answer_ids)
            batch.tokens_BxS[b, :q] = row.question_ids
            batch.tokens_BxS[b, q : q + a] = row.answer_ids
            batch.question_length_B[b], batch.answer_length_B[b] = q, a
            batch.objective_B[b] = OBJECTIVES.index(row.objective)
    return batch


def _group(
    order: np.ndarray, shapes: Sequence[Shape], common: set[Shape], size: int
) -> list[tuple[Shape, np.ndarray]]:
    """Return groups of `size` rows that fit a common shape, rows taken in the given order.

    Only the last group may be smaller. Rows that are left over move to the next larger S, from the
    largest S to the next larger C.
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
    """Return the shapes worth a compilation, and the largest, which takes the other rows."""
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
