"""Confidence intervals of mean scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_CHUNK = 1 << 22  # draws at a time: 32 MiB of indices


def clustered_bootstrap(
    values: ArrayLike, clusters: ArrayLike, samples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` `[N]`, whole clusters drawn with
    replacement.

    Questions on one paragraph share its difficulty and its compression, so they are no independent
    draws; `clusters` `[N]` says which values belong together.

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
    size_G = np.bincount(cluster_N)
    rng = np.random.default_rng(seed)
    G, rows = len(sum_G), max(1, _CHUNK // len(sum_G))
    means = []
    for start in range(0, samples, rows):
        drawn_RxG = rng.integers(G, size=(min(rows, samples - start), G))
        means.append(sum_G[drawn_RxG].sum(1) / size_G[drawn_RxG].sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)
