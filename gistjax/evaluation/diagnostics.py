"""Signs of collapse: slots alike whatever the context, answers alike whatever the question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gistjax.evaluation.metrics import normalize_answer


def slot_similarity(slots_BxMxD: np.ndarray, slots_B: np.ndarray) -> dict[str, float | None]:
    """Return the mean cosine of pairs of slots, in fp64; None where there is no pair.

    within    different slots of one context
    between   slots with the same number in different contexts

    Slots without a direction (zero, or not finite) are left out.

    Args:
        slots_BxMxD: slots of B different contexts, of any float dtype.
        slots_B: number of slots that each context uses, from the first on.
    """
    x_BxMxD = np.asarray(slots_BxMxD).astype(np.float64)
    used_BxM = np.arange(x_BxMxD.shape[1]) < np.asarray(slots_B)[:, None]
    size_BxM = np.sqrt((x_BxMxD * x_BxMxD).sum(axis=2))
    used_BxM &= np.isfinite(size_BxM) & (size_BxM > 0)
    unit_BxMxD = np.zeros_like(x_BxMxD)
    unit_BxMxD[used_BxM] = x_BxMxD[used_BxM] / size_BxM[used_BxM][:, None]
    return {
        "within": _mean_cosine(unit_BxMxD.sum(axis=1), used_BxM.sum(axis=1)),
        "between": _mean_cosine(unit_BxMxD.sum(axis=0), used_BxM.sum(axis=0)),
    }


def _mean_cosine(sum_GxD: np.ndarray, n_G: np.ndarray) -> float | None:
    """Return the mean over all pairs inside groups of n unit vectors with a given sum.

    `|sum|² = n + 2 · (sum of the pairs' cosines)`.
    """
    pairs = int((n_G * (n_G - 1)).sum())
    if not pairs:
        return None
    return float(np.clip(((sum_GxD**2).sum() - n_G.sum()) / pairs, -1.0, 1.0))


def answer_diversity(predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """Return the shares of different answers and of empty ones, normalised as for scoring.

    A model that gives one answer to everything has `predictions` far below `golds`.

    Raises:
        ValueError: without predictions or gold answers.
    """
    if not predictions or not golds:
        raise ValueError(f"{len(predictions)} predictions and {len(golds)} golds must be above 0")
    normal = [normalize_answer(text) for text in predictions]
    return {
        "predictions": len(set(normal)) / len(normal),
        "golds": len({normalize_answer(text) for text in golds}) / len(golds),
        "empty": normal.count("") / len(normal),
    }
