"""Scores of answers: of one against its golds, and means with intervals of many.

`METRICS` holds them by the name that an example asks for (`Example.metric`). F1 and exact match are
counted as the official SQuAD v1.1 evaluation counts them, in 0..1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gistjax.data.example import Example
from gistjax.errors import ConfigError, did_you_mean
from gistjax.evaluation.statistics import clustered_bootstrap

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


class Score(NamedTuple):
    """The score of one prediction, in 0..1."""

    f1: float
    em: float


def normalize_answer(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and English articles.

    Words are separated by one space.
    """
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised gold answer, else 0.0."""
    normal = normalize_answer(prediction)
    return float(any(normal == normalize_answer(gold) for gold in golds))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """Return the best F1 of normalised words with a gold answer.

    Without a common word it is 0.0, also where both are empty.
    """
    return max((_f1(prediction, gold) for gold in golds), default=0.0)


def _f1(prediction: str, gold: str) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    common = (Counter(predicted) & Counter(wanted)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def squad(prediction: str, golds: Sequence[str]) -> Score:
    """Return the official SQuAD v1.1 scores of a prediction."""
    return Score(f1(prediction, golds), exact_match(prediction, golds))


METRICS: dict[str, Callable[[str, Sequence[str]], Score]] = {"squad": squad}
"""Functions of a prediction and its gold answers, by name."""


def check_metrics(examples: Iterable[Example]) -> None:
    """Refuse examples that ask for an unknown metric, before anything is trained for them.

    Raises:
        ConfigError: naming the task and its metric.
    """
    for task, metric in sorted({(example.task, example.metric) for example in examples}):
        if metric not in METRICS:
            hint = did_you_mean(metric, METRICS)
            raise ConfigError(f"the task {task!r} is scored by {metric!r}, which is unknown{hint}")


@dataclass(frozen=True)
class Scores:
    """Means in 0..1 with 95 % intervals, from a bootstrap clustered by context."""

    f1: float
    f1_interval: tuple[float, float]
    em: float
    em_interval: tuple[float, float]
    f1_N: np.ndarray
    em_N: np.ndarray
    clusters_N: np.ndarray  # the context of each question

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.f1_N)


def score(
    predictions: Sequence[str], examples: Sequence[Example], samples: int, seed: int
) -> Scores:
    """Score predictions, in the examples' order, each by its example's metric.

    Args:
        samples: draws of the bootstrap.
    """
    scores = [
        METRICS[example.metric](text, example.answers)
        for text, example in zip(predictions, examples, strict=True)
    ]
    f1_N = np.array([one.f1 for one in scores])
    em_N = np.array([one.em for one in scores])
    clusters_N = np.array([example.context_id for example in examples])
    return Scores(
        f1=float(f1_N.mean()),
        f1_interval=clustered_bootstrap(f1_N, clusters_N, samples, seed),
        em=float(em_N.mean()),
        em_interval=clustered_bootstrap(em_N, clusters_N, samples, seed),
        f1_N=f1_N,
        em_N=em_N,
        clusters_N=clusters_N,
    )
