"""Scores of answers: of one against its golds, and means with intervals of many.

`METRICS` holds them by the name that an example asks for (`Example.metric`). F1 and exact match are
counted as SQuAD's official script of v2.0 counts them, in 0..1. It differs from that of v1.1 only
where an answer has no word: right is then, for F1 too, a prediction without a word.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from gistjax.data.example import Example
from gistjax.errors import ConfigError, did_you_mean
from gistjax.evaluation.statistics import clustered_bootstrap, clusters_of

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(
    r"(?:(?<![\d\w)])(-))?(?:[$£€]\s?)?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
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


def squad(prediction: str, golds: Sequence[str]) -> Score:
    """Return the official SQuAD scores of a prediction: the best over the gold answers.

    Golds without a word are left out; if there is no other, the right answer is none.
    """
    words = [found for gold in golds if (found := normalize_answer(gold).split())] or [[]]
    predicted = normalize_answer(prediction).split()
    return Score(max(_f1(predicted, gold) for gold in words), float(predicted in words))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """Return the best F1 of normalised words with a gold answer."""
    return squad(prediction, golds).f1


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised gold answer, else 0.0."""
    return squad(prediction, golds).em


def _f1(predicted: list[str], gold: list[str]) -> float:
    """Return the F1 of two bags of words; of nothing and nothing it is 1.0."""
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def abstains(prediction: str, abstention: str) -> bool:
    """Return whether a prediction says, in the words of its task, that there is no answer."""
    return bool(abstention) and normalize_answer(prediction) == normalize_answer(abstention)


def hotpotqa(prediction: str, golds: Sequence[str]) -> Score:
    """Return the scores of HotpotQA's official script: yes and no are right whole or not at all.

    With several gold answers it is the best score, word for word as with one.
    """
    return Score(
        *map(max, zip(*(_hotpotqa(prediction, gold) for gold in golds or ("",)), strict=True))
    )


def _hotpotqa(prediction: str, gold: str) -> Score:
    predicted, wanted = normalize_answer(prediction), normalize_answer(gold)
    whole = {predicted, wanted} & {"yes", "no", "noanswer"}
    overlap = 0.0
    if predicted and wanted and (predicted == wanted or not whole):
        overlap = _f1(predicted.split(), wanted.split())
    return Score(overlap, float(predicted == wanted))


def final_number(text: str) -> Decimal | None:
    """Return the value of the number that a text ends with: of "1,234.00" 1234; None without one.

    That is the first number behind `####`, where there is one, else the last. Currency signs, units
    and the full stop of a sentence do not count. A minus sign, also the typographic one, counts
    where no number, word or bracket stands before it: "10-3" ends with 3. LaTeX's comma `{,}` is
    one.
    """
    plain = text.replace("{,}", ",").replace("\u2212", "-")
    marked = _NUMBER.search(plain.partition("####")[2])
    found = [marked] if marked else list(_NUMBER.finditer(plain))
    if not found:
        return None
    sign, digits = found[-1].groups()
    return Decimal((sign or "") + digits.replace(",", ""))


def number(prediction: str, golds: Sequence[str]) -> Score:
    """Return 1.0 if the final number of a prediction is that of a gold answer, else 0.0."""
    values = {value for gold in golds if (value := final_number(gold)) is not None}
    right = float(final_number(prediction) in values)
    return Score(right, right)


METRICS: dict[str, Callable[[str, Sequence[str]], Score]] = {
    "squad": squad,
    "hotpotqa": hotpotqa,
    "number": number,
}
"""Functions of a prediction and its gold answers, by name."""


def check_metrics(examples: Iterable[Example]) -> None:
    """Refuse examples whose metric is unknown or gives no score, before anything is trained.

    Raises:
        ConfigError: naming the task and its metric.
    """
    for (task, metric), example in {(e.task, e.metric): e for e in examples}.items():
        if metric not in METRICS:
            hint = did_you_mean(metric, METRICS)
            raise ConfigError(f"the task {task!r} is scored by {metric!r}, which is unknown{hint}")
        tried = METRICS[metric](example.looked_up, example.answers)
        if not isinstance(tried, Score):
            raise ConfigError(
                f"the metric {metric!r} of the task {task!r} returned {tried!r}: return a "
                "Score(f1, em); a metric of one number gives it as both."
            )


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
    log_probability_N: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of the answers

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.f1_N)


def score_one(prediction: str, example: Example) -> Score:
    """Return the score of a prediction by its example's metric.

    One that says there is no answer, in the words of its task, counts as an empty one.
    """
    text = "" if abstains(prediction, example.abstention) else prediction
    return METRICS[example.metric](text, example.answers)


def score(
    predictions: Sequence[str], examples: Sequence[Example], samples: int, seed: int
) -> Scores:
    """Score predictions, in the examples' order, each by its example's metric (`score_one`).

    Args:
        samples: draws of the bootstrap.

    Raises:
        ConfigError: if a metric gives what is no score.
    """
    scores = [
        METRICS[example.metric]("" if abstains(text, example.abstention) else text, example.answers)
        for text, example in zip(predictions, examples, strict=True)
    ]
    for example, one in zip(examples, scores, strict=True):
        if not (0 <= one.f1 <= 1 and 0 <= one.em <= 1):
            raise ConfigError(
                f"the metric {example.metric!r} gave {example.id} F1 {one.f1} and EM {one.em}: "
                "they must be in 0..1."
            )
    f1_N = np.array([one.f1 for one in scores])
    em_N = np.array([one.em for one in scores])
    clusters_N = clusters_of([example.context_id for example in examples])
    return Scores(
        f1=float(f1_N.mean()),
        f1_interval=clustered_bootstrap(f1_N, clusters_N, samples, seed),
        em=float(em_N.mean()),
        em_interval=clustered_bootstrap(em_N, clusters_N, samples, seed),
        f1_N=f1_N,
        em_N=em_N,
        clusters_N=clusters_N,
    )
