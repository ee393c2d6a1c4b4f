"""The values that flow through training and evaluation, from a text to arrays of static shape.

    Example            a question on a context, as text
    TokenizedExample   the same as token ids
    Batch              many of them, padded to one of the shapes of `Buckets`

Shapes are named by a letter for each axis: E contexts, B rows (questions), Q questions of a
context, C context tokens, P tokens of the prompt before it, S question and answer tokens, A answer
tokens, Y tokens that a teacher proposes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from gistjax.config import DataConfig
from gistjax.data.report import DataReport
from gistjax.errors import DataError

Ints = Any  # int32 arrays: NumPy's on the host, JAX's on the devices
Shape = tuple[int, int]  # context bucket C, question bucket S
Articles = dict[str, tuple[str, ...]]
"""Every usable paragraph of a split, by article title."""

OBJECTIVES = ("answer", "reconstruction", "continuation", "cloze")
"""Kinds of rows: answers to questions, and the objectives on plain text (`gistjax.data.text`)."""


@dataclass(frozen=True)
class Example:
    """A question on a context, with its gold answers: none if the text does not say."""

    id: str
    title: str  # of the article that the context is from, or empty
    context: str
    question: str
    answers: tuple[str, ...]  # the first is trained on, all are scored against
    context_id: int  # within the split; examples on one context, and no others, share it
    evidence: tuple[str, ...] = ()  # texts of the context, one of which is needed to answer
    task: str = "answer"  # a name in `gistjax.config.TASKS`
    metric: str = "squad"  # a name in `gistjax.evaluation.metrics.METRICS`
    abstention: str = ""  # what its task says where there is no answer

    @property
    def looked_up(self) -> str:
        """The text that has to be found in the context; if none is known the first gold answer."""
        return (*self.evidence, *self.answers, "")[0]


@dataclass(frozen=True)
class Dataset:
    """The examples that were drawn, and all paragraphs of each split to fill contexts with."""

    train: list[Example]
    validation: list[Example]
    report: DataReport = field(default_factory=DataReport)
    train_articles: Articles = field(default_factory=dict)
    validation_articles: Articles = field(default_factory=dict)
    parts: dict[str, Dataset] = field(default_factory=dict)  # of a mixture: those of its tasks


@dataclass(frozen=True)
class TokenizedExample:
    """An example as int32 ids. Rows that share a context share its array."""

    context_ids: np.ndarray  # [context tokens]
    question_ids: np.ndarray  # [question tokens], the template up to the answer included
    answer_ids: np.ndarray  # [answer tokens], end token included; empty if only to be answered
    context_id: int
    example_index: int
    objective: str = "answer"  # one of OBJECTIVES
    prefix_ids: tuple[int, ...] = ()  # the prompt before the context
    task: str = ""  # in a mixture: the task's name; empty for text

    @property
    def context_length(self) -> int:
        """Positions of the context: an empty one takes one too, so that there is a key to see."""
        return max(len(self.context_ids), 1)

    @property
    def tokens_length(self) -> int:
        """Number of question and answer tokens."""
        return len(self.question_ids) + len(self.answer_ids)


def hash_rows(rows: Sequence[TokenizedExample]) -> str:
    """Return the SHA-256 of rows in their order: all that training reads of them.

    Where they were read from does not enter, but what became of them does: draws, cuts and filling.
    """
    digest, seen = hashlib.sha256(), set[int]()
    for row in rows:
        arrays = [row.question_ids, row.answer_ids, np.array(row.prefix_ids, np.int32)]
        if row.context_id not in seen:  # rows on a context share its tokens
            arrays.append(row.context_ids)
            seen.add(row.context_id)
        sizes = [array.size for array in arrays]
        digest.update(repr((row.context_id, row.objective, sizes)).encode())
        for array in arrays:
            digest.update(array.astype("<i4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Buckets:
    """Lengths that rows are padded to, ascending; each pair in use is compiled once."""

    context: tuple[int, ...]  # context tokens, C
    question: tuple[int, ...]  # question and answer tokens together, S

    @classmethod
    def of(cls, data: DataConfig) -> Buckets:
        """Return the buckets of a configuration."""
        return cls(tuple(data.context_buckets), tuple(data.question_buckets))

    @property
    def largest(self) -> Shape:
        """The shape that holds every row."""
        return max(self.context), max(self.question)

    def shape_of(self, row: TokenizedExample) -> Shape:
        """Return the smallest shape that holds a row.

        Raises:
            DataError: if none does.
        """
        return (
            _smallest(self.context, row.context_length, "context"),
            _smallest(self.question, row.tokens_length, "question"),
        )


def _smallest(buckets: Sequence[int], length: int, name: str) -> int:
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise DataError(
            f"a {name} of {length} tokens is longer than the largest of "
            f"--config.data.{name}_buckets, {max(buckets)}: add a larger bucket."
        )
    return min(fitting)


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

    Rows are ordered by context, `B = E·Q`. Padding contexts have length 1 and id -1, padding rows
    lengths 1 and 0: there is always something to attend to, and nothing to learn.
    """

    prefix_ids_P: Ints  # the prompt before the context, the same for all rows
    context_ids_ExC: Ints
    context_length_E: Ints
    context_id_E: Ints
    tokens_BxS: Ints  # question, then answer
    question_length_B: Ints
    answer_length_B: Ints  # end token included; 0 in padding rows and in evaluation
    objective_B: Ints  # index into OBJECTIVES
    context_view_ExD: Any = None  # fp32, of the frozen base; where the contrastive loss needs it
    teacher: Targets | None = None  # where the distillation loss needs them
    ratio_N: Any = None  # fp32, tokens a slot, where training draws them; N = E or, of select, B
    joined_ExG: Any = None  # of select: contexts that questions on one read, it first; -1: none
    bits_B: Any = None  # int32, of select, where training draws the widths of its entries
    kvzip_chooses_1: Any = None  # bool, where a scorer is trained: KVzip still chooses for it
    # In a mixture, the longest answer of the batch's task: it decides the program, as shapes do
    answer_tokens: int | None = field(default=None, metadata={"static": True})

    @property
    def questions(self) -> int:
        """Q, the questions on each context."""
        n: int = self.question_length_B.shape[-1] // self.context_length_E.shape[-1]
        return n
