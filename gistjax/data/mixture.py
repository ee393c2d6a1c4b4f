"""Mixtures: several tasks in one training, each with its own prompt, lengths and batches.

All rows of a batch share the prompt before their context, so a step has rows of one task. Which
one, is drawn so that each task's share of the answer tokens follows its weight: a task with long
answers gets fewer steps. The losses of a step are means over its own rows, whatever the others are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gistjax.data.batching import PlanSettings, TrainPlan, total_steps
from gistjax.data.example import (
    Articles,
    Batch,
    Buckets,
    Dataset,
    Example,
    Shape,
    Targets,
    TokenizedExample,
)
from gistjax.data.tasks import told_of

TEXT = "text"
"""What rows of plain text are called among the tasks."""


def joined(parts: Mapping[str, Dataset]) -> Dataset:
    """Return the data sets of several tasks as one; ids begin with the task's name."""
    whole = Dataset([], [])
    for (name, part), (first_train, first_validation) in zip(
        parts.items(), first_contexts(parts), strict=True
    ):
        whole = Dataset(
            whole.train + _renamed(part.train, name, first_train),
            whole.validation + _renamed(part.validation, name, first_validation),
            whole.report + part.report.of(name),
            whole.train_articles | _of(name, part.train_articles),
            whole.validation_articles | _of(name, part.validation_articles),
        )
    return dataclasses.replace(whole, parts=dict(parts))


def _of(name: str, articles: Articles) -> Articles:
    return {f"{name}/{title}": contexts for title, contexts in articles.items()}


def first_contexts(parts: Mapping[str, Dataset]) -> list[tuple[int, int]]:
    """Return the first context id of each task among all, in training and in validation."""
    sizes = [
        [1 + max((example.context_id for example in split), default=-1) for split in splits]
        for splits in ((part.train, part.validation) for part in parts.values())
    ]
    ends = np.cumsum(sizes, axis=0) - sizes
    return [(int(train), int(validation)) for train, validation in ends]


def _renamed(examples: Sequence[Example], name: str, first_context: int) -> list[Example]:
    return [
        dataclasses.replace(e, id=f"{name}/{e.id}", context_id=e.context_id + first_context)
        for e in examples
    ]


class MixedPlan:
    """The rows of every training step of a mixture: a pure function of (rows, seed, step).

    Each task has a `TrainPlan` of its own and begins again when its rows are used up. An epoch has
    as many steps as all rows together take. Rows of plain text, if there are any, get their share
    of all units; the tasks share the other steps by weight.

    Args:
        rows: training rows, those of a task with its name.
        weights: share of answer tokens of each task, not necessarily of sum 1.
        buckets: lengths to pad to.
        settings: sizes, seed and duration.
        views: one of each context by its id, `[contexts, D]`, to go with the batches.
        teachers: targets for the rows of tasks, to go with their batches.

    Raises:
        DataError: if a task has fewer units than one step takes, or a row fits no bucket.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedExample],
        weights: Mapping[str, float],
        buckets: Buckets,
        settings: PlanSettings,
        views: np.ndarray | None = None,
        teachers: Mapping[str, Targets] | None = None,
    ):
        names = [*weights, *([TEXT] if any(not row.task for row in rows) else [])]
        self._indices = {
            name: np.array([i for i, row in enumerate(rows) if (row.task or TEXT) == name], int)
            for name in names
        }
        self._plans = dict[str, TrainPlan]()
        for name, indices in self._indices.items():
            own, teacher = [rows[i] for i in indices], (teachers or {}).get(name)
            with told_of(name):
                self._plans[name] = TrainPlan(own, buckets, _fitted(settings, own), views, teacher)
        units = sum(plan.units for plan in self._plans.values())
        self.steps_per_epoch = units // (settings.accumulation * settings.batch_size)
        self.total_steps = total_steps(settings.epochs, self.steps_per_epoch, settings.max_steps)
        self.answer_tokens = max(plan.answer_tokens for plan in self._plans.values())
        self.shares = _shares(self._plans, weights)
        self._order, self._own_steps = schedule(
            list(self.shares.values()), self.total_steps, settings.seed
        )

    def task(self, step: int) -> str:
        """Return the task that a step has rows of, or `text`."""
        name: str = list(self._plans)[self._order[step]]
        return name

    def rows(self, step: int) -> np.ndarray:
        """Return the row indices `[K·E, Q]` of a step; -1 where a context has no more."""
        name = self.task(step)
        own = self._plans[name].rows(int(self._own_steps[step]))
        return np.where(own < 0, -1, self._indices[name][own])

    def batch(self, step: int) -> Batch:
        """Return the arrays of a step, `[K, …]`."""
        plan = self._plans[self.task(step)]
        batch = plan.batch(int(self._own_steps[step]), (step, self.total_steps))
        return dataclasses.replace(batch, answer_tokens=plan.answer_tokens)

    @property
    def shapes(self) -> dict[Shape, int]:
        """Number of steps by shape (C, S) in the first epoch; each task compiles its own."""
        steps = min(self.steps_per_epoch, self.total_steps)
        shapes = (
            self._plans[self.task(step)].shape(int(self._own_steps[step])) for step in range(steps)
        )
        return dict(sorted(Counter(shapes).items()))

    def real_decoder_share(self, prefix: int, memory: Callable[[int], int]) -> float:
        """Return the share of decoder positions that is not padding (`TrainPlan`)."""
        return sum(
            share * self._plans[name].real_decoder_share(prefix, memory)
            for name, share in self.shares.items()
        )

    def __str__(self) -> str:
        """Say how many steps each task has, and how often its rows are used."""
        counts = np.bincount(self._order, minlength=len(self._plans))
        return ", ".join(
            f"{name} {count} steps ({count / plan.steps_per_epoch:.3g} epochs)"
            for (name, plan), count in zip(self._plans.items(), counts, strict=True)
        )


def _fitted(settings: PlanSettings, rows: Sequence[TokenizedExample]) -> PlanSettings:
    """Return settings with no more rows a unit than the task has questions on a context."""
    most = max(Counter(row.context_id for row in rows).values(), default=1)
    return dataclasses.replace(settings, questions=min(settings.questions, most))


def _shares(plans: Mapping[str, TrainPlan], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the share of steps of each task, by its weight and the answer tokens of its units."""
    units = sum(plan.units for plan in plans.values())
    text = plans[TEXT].units / units if TEXT in plans else 0.0
    parts = {name: weight / plans[name].tokens_per_unit for name, weight in weights.items()}
    shares = {name: (1 - text) * part / sum(parts.values()) for name, part in parts.items()}
    return {name: shares.get(name, text) for name in plans}


def schedule(shares: Sequence[float], steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the task of each step, and how many steps that task has had before it.

    Each step goes to the task that is furthest behind its share, but for a drawn number below 1:
    counts never are far from their shares, and tasks alternate in no fixed order. The beginning
    does not depend on the number of steps.
    """
    drawn_SxT = np.random.default_rng([seed, 4]).random((steps, len(shares)))
    behind_T, done_T = np.zeros(len(shares)), np.zeros(len(shares), int)
    order, own = np.zeros(steps, int), np.zeros(steps, int)
    for step in range(steps):
        behind_T += shares
        task = int(np.argmax(behind_T + drawn_SxT[step]))
        order[step], own[step] = task, done_T[task]
        behind_T[task] -= 1
        done_T[task] += 1
    return order, own
