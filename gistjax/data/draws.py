"""What a training step draws beside its rows: a pure function of seed and step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def ratios_in_use(
    ratios: tuple[float, ...], growth: float, step: int, total_steps: int
) -> tuple[float, ...]:
    """Return the ratios that a step may draw: more and more of them, over a share of the steps."""
    share = (step + 1) / max(growth * total_steps, 1)
    return ratios[: max(math.ceil(round(min(share, 1) * len(ratios), 6)), 1)]


def draw_ratios(
    seed: Sequence[int], ratios: tuple[float, ...], units: np.ndarray, a_row: int
) -> np.ndarray:
    """Draw a ratio for each context or, with ratios a row, for each row, fp32 `[N]`.

    Those of one row's copies differ, as far as there are so many.

    Args:
        units: indices of rows `[E, Q]`, a unit's copies of a row beside each other.
    """
    rng = np.random.default_rng(seed)
    if not a_row:
        return rng.choice(np.asarray(ratios, np.float32), len(units))
    drawn = np.empty(units.shape, np.float32)
    for unit, of_unit in zip(units, drawn, strict=True):
        for row in np.unique(unit):
            places = np.flatnonzero(unit == row)
            of_unit[places] = np.resize(rng.permutation(ratios), len(places))
    return drawn.ravel()


def draw_joined(seed: Sequence[int], context_id_KxE: np.ndarray, most: int) -> np.ndarray:
    """Draw for each context others of its micro-batch, `[K·E, most]` by their number in that.

    The context itself is first, others follow, from none to `most - 1`, as likely each; -1 where
    there is none. Padding contexts (id -1) and the same context again are no others.
    """
    rng = np.random.default_rng(seed)
    K, E = context_id_KxE.shape
    joined_KxExG = np.full((K, E, most), -1, np.int32)
    for context_id_E, joined_ExG in zip(context_id_KxE, joined_KxExG, strict=True):
        for place, context in enumerate(context_id_E):
            others = np.flatnonzero((context_id_E >= 0) & (context_id_E != context))
            drawn = rng.permutation(others)[: rng.integers(most)]
            joined_ExG[place, : len(drawn) + 1] = [place, *drawn]
    return joined_KxExG.reshape(K * E, most)
