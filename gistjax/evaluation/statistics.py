"""Confidence intervals of mean scores, and of the difference and the ratio of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_CHUNK = 1 << 22  # draws at a time: 32 MiB of indices


def clusters_of(contexts: Sequence[int]) -> np.ndarray:
    """Return what is drawn for an interval: contexts, or of a single context its questions."""
    if len(set(contexts)) == 1:  # no other context could have been drawn
        return np.arange(len(contexts))
    return np.array(contexts)


def clustered_bootstrap(
    values: ArrayLike, clusters: ArrayLike, samples: int, seed: int, of: ArrayLike = 1
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean, whole clusters drawn with replacement.

    Questions on one paragraph share its difficulty and its compression, so they are no independent
    draws.

    Args:
        values: `[N]`.
        clusters: `[N]`; values of equal clusters belong together.
        of: `[N]`; if given, the interval is that of the sum of values over the sum of these, from
            the draws in which that is not 0.

    Raises:
        ValueError: without values or samples, or if there is not one cluster for each value.
    """
    values_N, clusters_N = np.asarray(values, np.float64), np.asarray(clusters)
    if values_N.shape != clusters_N.shape or values_N.ndim != 1 or not len(values_N):
        raise ValueError(
            f"values {values_N.shape} and clusters {clusters_N.shape} must be [N], N > 0"
        )
    if samples < 1:
        raise ValueError(f"samples is {samples}, and must be at least 1")
    _, cluster_N = np.unique(clusters_N, return_inverse=True)
    sum_G = np.bincount(cluster_N, weights=values_N)
    size_G = np.bincount(cluster_N, weights=np.broadcast_to(of, values_N.shape))
    rng = np.random.default_rng(seed)
    G, rows = len(sum_G), max(1, _CHUNK // len(sum_G))
    means = []
    for start in range(0, samples, rows):
        drawn_RxG = rng.integers(G, size=(min(rows, samples - start), G))
        size_R = size_G[drawn_RxG].sum(1)
        means.append(sum_G[drawn_RxG].sum(1) / np.where(size_R, size_R, np.nan))
    low, high = np.nanpercentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def resampled(
    statistic: Callable[[np.ndarray], float], clusters: ArrayLike, samples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic, whole clusters drawn with replacement.

    Args:
        statistic: of how often each value was drawn, int `[N]`.
        clusters: `[N]`; values of equal clusters are drawn together.
    """
    _, cluster_N = np.unique(np.asarray(clusters), return_inverse=True)
    rng, G = np.random.default_rng(seed), int(cluster_N.max()) + 1
    draws = (np.bincount(rng.integers(G, size=G), minlength=G) for _ in range(samples))
    low, high = np.nanpercentile([statistic(drawn_G[cluster_N]) for drawn_G in draws], (2.5, 97.5))
    return float(low), float(high)


LEAST_GAP = 0.02
"""What a full context must gain over a closed book, beyond doubt, to be a scale for others."""


@dataclass(frozen=True)
class Normalised:
    """The part of the way from one control to the other, and its 95 % interval."""

    value: float
    interval: tuple[float, float]


def normalised(
    scores: ArrayLike,
    floor: ArrayLike,
    ceiling: ArrayLike,
    clusters: ArrayLike,
    samples: int,
    seed: int,
) -> Normalised | None:
    """Return `(score - floor) / (ceiling - floor)` of means, three scores `[N]` of one question.

    None unless the ceiling is clearly above the floor: if the interval of their difference reaches
    below `LEAST_GAP`, the fraction would be one of almost nothing.

    Args:
        floor: of the closed book.
        ceiling: of the full context.
    """
    floor_N, ceiling_N = np.asarray(floor, np.float64), np.asarray(ceiling, np.float64)
    gap = paired_difference(ceiling_N, floor_N, clusters, samples, seed)
    if gap.interval[0] < LEAST_GAP:
        return None
    part_N, whole_N = np.asarray(scores, np.float64) - floor_N, ceiling_N - floor_N
    interval = clustered_bootstrap(part_N, clusters, samples, seed, of=whole_N)
    return Normalised(float(part_N.mean() / whole_N.mean()), interval)


def mean_interval(
    means: Sequence[float], intervals: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of independent means, from the interval of each.

    On each side their distances add up in squares, as those of independent errors do.
    """
    lows = [mean - interval[0] for mean, interval in zip(means, intervals, strict=True)]
    highs = [interval[1] - mean for mean, interval in zip(means, intervals, strict=True)]
    middle, n = sum(means) / len(means), len(means)
    return middle - math.hypot(*lows) / n, middle + math.hypot(*highs) / n


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval."""

    mean: float
    interval: tuple[float, float]


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, samples: int, seed: int
) -> Difference:
    """Return the mean of `a - b`, two scores `[N]` of the same questions, and its interval.

    What makes a question hard for both cancels, so that the interval of `clustered_bootstrap` is
    narrower than those of the two means suggest.

    Raises:
        ValueError: as `clustered_bootstrap`, or if the scores are not equally many.
    """
    a_N, b_N = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a_N.shape != b_N.shape:
        raise ValueError(f"the scores {a_N.shape} and {b_N.shape} must be of the same questions")
    interval = clustered_bootstrap(a_N - b_N, clusters, samples, seed)
    return Difference(float((a_N - b_N).mean()), interval)
