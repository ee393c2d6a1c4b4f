"""How well scores tell right answers from wrong ones: a model may abstain where it is unsure.

A model that answers only the questions whose answers have the highest scores answers a share of
them, its coverage, and is right in a part of that share, its selective accuracy (Geifman and
El-Yaniv 2017, arXiv:1705.08500). `accuracy_area` is the mean of that accuracy over all coverages
1/N, 2/N, … 1: one less the AURC of Geifman, Uziel and El-Yaniv 2019, arXiv:1805.08206. It depends
on the order of the scores alone. What it can reach depends on how many answers are right at all:
scores that know nothing give the accuracy itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gistjax.data.example import Example
from gistjax.evaluation.metrics import Scores, abstains, score_one
from gistjax.evaluation.statistics import clustered_bootstrap, resampled

BINS = 10
"""Parts, equally many answers in each, that `calibration_error` compares."""
FEWEST_ANSWERED = 10
"""Answers whose mean `f1_by_coverage` gives; that of fewer says little."""


class Coverage:
    """Answers from the highest score to the lowest.

    Args:
        scores: `[N]`, N > 0.
        right: `[N]`, 1 where the answer is right; or the part of it that is, in 0..1.
    """

    def __init__(self, scores: ArrayLike, right: ArrayLike):
        self._right_N = np.asarray(right, np.float64)
        _, self._rank_N = np.unique(-np.asarray(scores, np.float64), return_inverse=True)

    def area(self, counts: ArrayLike = 1) -> float:
        """Return the mean over all coverages of the accuracy among what is answered.

        Of equal scores no order is preferred: it is the mean over all orders of them.

        Args:
            counts: how often each answer counts, whole numbers.
        """
        count_N = np.broadcast_to(np.asarray(counts, np.int64), self._right_N.shape)
        size_K = np.bincount(self._rank_N, count_N).astype(np.int64)  # by score, highest first
        right_K = np.bincount(self._rank_N, count_N * self._right_N)
        end_K = np.cumsum(size_K)
        start_K, sure_K = end_K - size_K, np.cumsum(right_K) - right_K
        # j answers into those of equal score, of which a part p is right, the accuracy is
        # (sure + p j) / (start + j) = p + (sure - p start) / (start + j): harmonic sums over j
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, end_K[-1] + 1))])
        part_K = right_K / np.maximum(size_K, 1)
        lead_K = (sure_K - part_K * start_K) * (harmonic[end_K] - harmonic[start_K])
        return float((right_K + lead_K).sum() / end_K[-1])

    def at(self, answered: int) -> float:
        """Return the accuracy among so many answers, those of the highest scores.

        Where equal scores are cut, it is the mean over all orders of them.
        """
        size_K = np.bincount(self._rank_N)
        start_K = np.cumsum(size_K) - size_K
        taken_K = np.clip(answered - start_K, 0, size_K)
        return float((taken_K / size_K * np.bincount(self._rank_N, self._right_N)).sum() / answered)


def accuracy_area(scores: ArrayLike, right: ArrayLike) -> float:
    """Return the area under coverage against accuracy (`Coverage.area`)."""
    return Coverage(scores, right).area()


def area_of(scores: Scores) -> float:
    """Return the same of answers by their probability, an exact match being right."""
    return accuracy_area(scores.log_probability_N, scores.em_N == 1)


def f1_by_coverage(
    rows: Sequence[Mapping[str, Any]], shares: Sequence[float], f1: float
) -> dict[float, float]:
    """Return the F1 of what is answered, by the share of questions that are, the surest first.

    Of a mixture it is the mean over tasks, each of which answers this share of its own questions.
    Shares of fewer than `FEWEST_ANSWERED` are left out. Nothing is returned where there is nothing
    to choose by: an answer has no score or was withheld, or all have the same.

    Args:
        rows: of `predictions.json`.
        shares: in 0..1.
        f1: that of all questions; rows with another are of another evaluation, or some of them.
    """
    if not rows or any("score" not in row or "withheld" in row for row in rows):
        return {}
    tasks: dict[Any, list[tuple[float, float]]] = {}
    for row in rows:
        tasks.setdefault(row.get("task"), []).append((row["score"], row["f1"]))
    parts = [(Coverage(*zip(*pairs, strict=True)), len(pairs)) for pairs in tasks.values()]
    whole = math.fsum(part.at(n) for part, n in parts) / len(parts)
    same = any(len({score for score, _ in pairs}) == 1 for pairs in tasks.values())
    if same or not math.isclose(whole, f1, abs_tol=1e-6):
        return {}
    found = {}
    for share in shares:
        answered = [math.floor(share * n + 1e-9) for _, n in parts]  # 0.29 of 100 are 29
        if min(answered) >= FEWEST_ANSWERED:
            means = [part.at(k) for (part, _), k in zip(parts, answered, strict=True)]
            found[share] = math.fsum(means) / len(means)
    return found if len(found) > 1 else {}


def auroc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """Return the chance that a positive has a higher score than a negative; ties are half of one.

    None if one of the two kinds is missing.
    """
    is_positive_N = np.asarray(positive, bool)
    _, rank_N = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    negative_K = np.bincount(rank_N, ~is_positive_N)
    below_K = np.cumsum(negative_K) - negative_K / 2
    pairs = is_positive_N.sum() * (~is_positive_N).sum()
    return float(below_K[rank_N[is_positive_N]].sum() / pairs) if pairs else None


def calibration_error(probabilities: ArrayLike, right: ArrayLike) -> float:
    """Return the mean difference between probability and share of right answers.

    Over `BINS` parts of equally many answers, ordered by probability (Naeini et al. 2015, with
    equal parts as Nguyen and O'Connor 2015, arXiv:1508.05154).
    """
    probability_N, right_N = np.asarray(probabilities), np.asarray(right, np.float64)
    order_N = np.argsort(probability_N, kind="stable")
    gaps = [
        abs(float((probability_N[part] - right_N[part]).sum()))
        for part in np.array_split(order_N, BINS)
    ]
    return sum(gaps) / len(order_N)


@dataclass(frozen=True)
class Judged:
    """Answers as they were written, before any were withheld."""

    texts: list[str]
    score_N: np.ndarray
    right_N: np.ndarray  # an exact match; of a question without an answer, having said so
    answerable_N: np.ndarray  # whether the question has an answer
    abstains_N: np.ndarray  # whether what was written says that it has none

    @classmethod
    def of(cls, texts: list[str], examples: Sequence[Example], score_N: np.ndarray) -> Judged:
        """Return answers to examples, in their order."""
        pairs = list(zip(texts, examples, strict=True))
        return cls(
            texts,
            score_N,
            right_N=np.array([score_one(text, one).em == 1 for text, one in pairs]),
            answerable_N=np.array([bool(one.answers) for _, one in pairs]),
            abstains_N=np.array([abstains(text, one.abstention) for text, one in pairs]),
        )


def selective_metrics(
    judged: Judged, clusters_N: np.ndarray, samples: int, seed: int
) -> dict[str, Any]:
    """Return what `metrics.json` says of the scores of answers.

    `auroc_answerable` takes an answer's score, and 1 less that of one that says there is none.

    Args:
        clusters_N: the context of each question.
        samples: draws of the bootstrap.
    """
    score_N = judged.score_N
    coverage = Coverage(score_N, judged.right_N)
    interval = resampled(coverage.area, clusters_N, samples, seed)
    found: dict[str, Any] = {
        "accuracy_area": coverage.area(),
        "accuracy_area_interval": list(interval),
        "auroc": auroc(score_N, judged.right_N),
    }
    if not judged.answerable_N.all():
        answers_N = np.where(judged.abstains_N, 1 - score_N, score_N)
        found["auroc_answerable"] = auroc(answers_N, judged.answerable_N)
    return found


def answerable_metrics(
    scores: Scores, answerable_N: np.ndarray, samples: int, seed: int
) -> dict[str, Any]:
    """Return the scores of questions with and without an answer, where there are both.

    They are HasAns_f1, HasAns_exact and NoAns_f1 of SQuAD 2.0's official script, in 0..1.
    """
    if answerable_N.all() or not answerable_N.any():
        return {}
    f1_N = scores.f1_N[answerable_N]
    interval = clustered_bootstrap(f1_N, scores.clusters_N[answerable_N], samples, seed)
    return {
        "answerable_f1": float(f1_N.mean()),
        "answerable_f1_interval": list(interval),
        "answerable_em": float(scores.em_N[answerable_N].mean()),
        "unanswerable_f1": float(scores.f1_N[~answerable_N].mean()),
    }
