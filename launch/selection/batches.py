"""Tokenised questions and the static arrays that programs read.

All questions of a context stand in one flat row, its *tail*: one piece a ratio, each with every
question of the group once. A context is read once for all of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from launch.selection.model import Prompt, read_prompt
from launch.selection.options import RATIOS, Bucket, Options

GROUP = 5
"""Questions of a context that are read together, at most."""

LONGEST_ANSWER = 40
"""Tokens; questions with a longer one are not trained on."""


class Group(NamedTuple):
    """Questions on one context."""

    context: int
    questions: list[int]


class Asked(NamedTuple):
    """A question of a batch: its row, its place there, its index in the split, its ratio's."""

    row: int
    place: int
    question: int
    ratio: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Answer tokens to predict, `[B, A]`."""

    at: np.ndarray  # places in the tail whose next token is predicted
    token: np.ndarray
    weight: np.ndarray  # fp32: 1, and 0 in unused places
    ratio: np.ndarray  # places in RATIOS


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Questions:
    """Questions to answer, `[B, Q]`."""

    last: np.ndarray  # places of their last tokens in the tail
    number: np.ndarray  # as in `Batch.question_BxM`; -2 in unused places
    ratio: np.ndarray  # places in RATIOS
    length: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Contexts with the tails that ask about them; int32."""

    context_BxT: np.ndarray  # prompt, context, padding
    length_B: np.ndarray  # tokens of the context
    repeat_BxS: np.ndarray  # request to repeat the context, and the context
    tail_BxM: np.ndarray
    question_BxM: np.ndarray  # number of the question in the row; -1 for padding
    place_BxM: np.ndarray  # place in the question
    ratio_BxM: np.ndarray  # place in RATIOS that it is read at
    targets: Targets | None  # in training
    questions: Questions | None  # in evaluation
    copies: int = field(metadata={"static": True})


class Split:
    """The questions of one file, by index.

    Args:
        name: of the file; or held, held_filled: the articles of train, train_filled that are held
            out.
        n: number of questions that are drawn from them; 0 for all.
    """

    def __init__(self, data: Path, name: str, n: int = 0):
        is_held = name.startswith("held")
        file = name.replace("held", "train", 1) if is_held else name
        with np.load(data / f"{file}.npz") as arrays:
            self.contexts, self.asks, self.answers = (
                _rows(arrays[key], arrays[f"{key}_off"]) for key in ("ctx", "q", "a")
            )
            self.context_of: np.ndarray = arrays["par"]
            held = arrays["held"][self.context_of]
        self.prompt = read_prompt(data)
        self.ids: list[str] = json.loads((data / f"{file}_ids.json").read_text())
        self.questions = np.flatnonzero(held if is_held else ~held)
        if 0 < n < len(self.questions):
            drawn = np.random.default_rng(7).permutation(self.questions)[:n]
            self.questions = np.sort(drawn)

    def tokens(self, question: int) -> np.ndarray:
        """Return question, answer and the token that ends it."""
        return np.concatenate([self.asks[question], self.answers[question], [self.prompt.end]])


def _rows(flat: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    flat = flat.astype(np.int32)
    return [flat[i:j] for i, j in zip(offsets[:-1], offsets[1:], strict=True)]


def group_questions(
    split: Split, buckets: Sequence[Bucket], rng: np.random.Generator | None
) -> dict[int, list[Group]]:
    """Return groups of questions whose context and tail fit a bucket, by the bucket's index.

    Args:
        rng: orders the questions of a context for training, with their answers. None: questions
            alone, contexts by length, for evaluation.
    """
    by_context: dict[int, list[int]] = defaultdict(list)
    for question in split.questions:
        by_context[int(split.context_of[question])].append(int(question))
    groups: dict[int, list[Group]] = defaultdict(list)
    for context, questions in by_context.items():
        length = len(split.prompt.prefix) + len(split.contexts[context])
        fits = [i for i, bucket in enumerate(buckets) if length <= bucket.length]
        bucket = fits[0] if fits else len(buckets) - 1  # longer contexts are cut
        if rng is not None:
            rng.shuffle(questions)
        for some in _fitting(split, questions, buckets[bucket].tail, rng is not None):
            groups[bucket].append(Group(context, some))
    if rng is None:
        for some_groups in groups.values():
            some_groups.sort(key=lambda group: len(split.contexts[group.context]))
    return groups


def _fitting(
    split: Split, questions: list[int], room: int, with_answers: bool
) -> Iterator[list[int]]:
    """Yield groups of at most GROUP questions that fit a piece of a tail, in their order."""
    group: list[int] = []
    used = 0
    for question in questions:
        length, answer = len(split.asks[question]), len(split.answers[question])
        if with_answers:
            length += answer + 1
        if length > room or (with_answers and answer > LONGEST_ANSWER):
            continue
        if used + length > room or len(group) == GROUP:
            yield group
            group, used = [], 0
        group.append(question)
        used += length
    if group:
        yield group


class _Arrays:
    """The arrays of a batch while they are filled."""

    def __init__(self, prompt: Prompt, rows: int, bucket: Bucket, copies: int):
        self.prompt, self.rows, self.copies = prompt, rows, copies
        self.context = np.full((rows, bucket.length), prompt.end, np.int32)
        self.context[:, : len(prompt.prefix)] = prompt.prefix
        self.length = np.ones(rows, np.int32)
        size = (rows, bucket.tail * copies)
        self.tail = np.full(size, prompt.end, np.int32)
        self.question = np.full(size, -1, np.int32)
        self.place = np.zeros(size, np.int32)
        self.ratio = np.zeros(size, np.int32)

    def put_context(self, row: int, context: np.ndarray) -> None:
        start = len(self.prompt.prefix)
        context = context[: self.context.shape[1] - start]
        self.context[row, start : start + len(context)] = context
        self.length[row] = len(context)

    def put(self, row: int, start: int, tokens: np.ndarray, number: int, ratio: int) -> None:
        """Put a question into the tail at `start`."""
        at = slice(start, start + len(tokens))
        self.tail[row, at] = tokens
        self.question[row, at] = number
        self.place[row, at] = np.arange(len(tokens))
        self.ratio[row, at] = ratio

    def batch(self, targets: Targets | None = None, questions: Questions | None = None) -> Batch:
        repeat = np.tile(np.array(self.prompt.repeat, np.int32), (self.rows, 1))
        repeat = np.concatenate([repeat, self.context[:, len(self.prompt.prefix) :]], 1)
        return Batch(
            context_BxT=self.context,
            length_B=self.length,
            repeat_BxS=repeat,
            tail_BxM=self.tail,
            question_BxM=self.question,
            place_BxM=self.place,
            ratio_BxM=self.ratio,
            targets=targets,
            questions=questions,
            copies=self.copies,
        )


class _AnswerTokens:
    """The targets of a batch while they are filled, a third of its tail at most."""

    def __init__(self, rows: int, room: int):
        self.at, self.token, self.ratio = (np.zeros((rows, room), np.int32) for _ in range(3))
        self.weight = np.zeros((rows, room), np.float32)
        self.used = np.zeros(rows, int)

    def put(self, row: int, before: int, tokens: np.ndarray, ratio: int) -> None:
        """Add an answer that follows the tail's place `before`, if there is room for it."""
        here = slice(self.used[row], self.used[row] + len(tokens))
        if here.stop > self.at.shape[1]:
            return
        self.at[row, here] = before + np.arange(len(tokens))
        self.token[row, here] = tokens
        self.weight[row, here] = 1
        self.ratio[row, here] = ratio
        self.used[row] = here.stop

    def targets(self) -> Targets:
        return Targets(self.at, self.token, self.weight, self.ratio)


def training_batch(
    split: Split,
    groups: Sequence[Group],
    rows: int,
    bucket: int,
    options: Options,
    rng: np.random.Generator,
) -> Batch:
    """Return a batch of questions with answers, each at ratios of its own."""
    shape, copies = options.buckets[bucket], options.copies
    arrays = _Arrays(split.prompt, rows, shape, copies)
    answers = _AnswerTokens(rows, shape.tail * copies // 3)
    for row, group in enumerate(groups):
        arrays.put_context(row, split.contexts[group.context])
        n = len(group.questions)
        drawn = np.zeros((n, copies), int) if options.full else _draw_ratios(rng, n, options)
        for copy in range(copies):
            start = copy * shape.tail
            for i, question in enumerate(group.questions):
                tokens, asked = split.tokens(question), len(split.asks[question])
                arrays.put(row, start, tokens, copy * n + i, drawn[i, copy])
                answers.put(row, start + asked - 1, tokens[asked:], drawn[i, copy])
                start += len(tokens)
    return arrays.batch(targets=answers.targets())


def _draw_ratios(rng: np.random.Generator, n: int, options: Options) -> np.ndarray:
    """Draw ratios `[n, copies]`, without repeats for a question (Efraimidis and Spirakis 2006)."""
    odds = np.array(options.ratio_odds) / sum(options.ratio_odds)
    keys = rng.random((n, len(RATIOS))) ** (1 / odds)
    return keys.argsort(1)[:, ::-1][:, : options.copies]


def question_batch(
    split: Split, groups: Sequence[Group], rows: int, bucket: int, options: Options
) -> tuple[Batch, list[Asked]]:
    """Return a batch of questions, each at every ratio that is evaluated, and what is asked."""
    shape, ratios = options.buckets[bucket], options.ratio_ids
    copies = len(ratios)
    arrays = _Arrays(split.prompt, rows, shape, copies)
    last, ratio, length = (np.zeros((rows, GROUP * copies), np.int32) for _ in range(3))
    number = np.full((rows, GROUP * copies), -2, np.int32)
    asked = []
    for row, group in enumerate(groups):
        arrays.put_context(row, split.contexts[group.context])
        for copy, r in enumerate(ratios):
            start = copy * shape.tail
            for i, question in enumerate(group.questions):
                tokens, k = split.asks[question], copy * len(group.questions) + i
                arrays.put(row, start, tokens, k, r)
                start += len(tokens)
                last[row, k], number[row, k], ratio[row, k] = start - 1, k, r
                length[row, k] = len(tokens)
                asked.append(Asked(row, k, question, r))
    return arrays.batch(questions=Questions(last, number, ratio, length)), asked
