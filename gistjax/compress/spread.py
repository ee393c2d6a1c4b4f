"""How a budget of kept entries is spread over layers and KV heads, and which entries that keeps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gistjax.model.masks import lengths_to_valid

PROFILE_RATIOS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Tokens an entry at which a profile has its parts; between them they are interpolated."""

LEAST_PART = 1e-6
HALVINGS = 40
LOWEST, HIGHEST = np.int32(-(2**31)), np.int32(2**31 - 1)


class Cut(NamedTuple):
    """Which entries are kept."""

    kept: Array  # bool
    threshold: Array  # fp32, the least score that is kept; infinite where nothing is decided


def largest(score: Array, valid: Array, n: Array) -> Array:
    """Mark the n largest scores over the last axis, among the valid; of equal ones the first.

    Args:
        n: int32, in the other axes' shape or one that broadcasts with it.
    """
    return cut(score, valid, n).kept


def cut(score: Array, valid: Array, n: Array) -> Cut:
    """Mark the n largest scores over the last axis, and say which is the least of them.

    Args:
        score, valid, n: as in `largest`.

    Returns:
        Thresholds with a last axis of 1: ∞ where n is 0, −∞ where everything valid is kept.
    """
    score = jnp.where(valid, score.astype(jnp.float32), -jnp.inf)
    n = n[..., None]
    least = nth_largest(score, n)
    above, equal = score > least, (score == least) & valid
    left = n - jnp.sum(above, axis=-1, keepdims=True)
    place = jnp.arange(score.shape[-1])
    last = nth_largest(jnp.where(equal, -place.astype(jnp.float32), -jnp.inf), left)
    kept = (above | (equal & (-place >= last))) & (n > 0)
    everything = n >= jnp.sum(valid, axis=-1, keepdims=True)
    kept = jnp.where(everything, valid, kept)
    threshold = jnp.where(n > 0, jnp.where(everything, -jnp.inf, least), jnp.inf)
    return Cut(kept, threshold)


def nth_largest(score: Array, n: Array) -> Array:
    """Return the n-th largest of fp32 scores over the last axis, the largest where n is 0.

    By bisection on the bits of a float: sorting the scores of all layers takes longer than the
    pass that they are of.

    Args:
        n: int32, with a last axis of 1.
    """
    score = jnp.where(score == 0, 0.0, score)  # -0.0 has other bits
    bits = _ordered(jax.lax.bitcast_convert_type(score, jnp.int32))

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # their mean rounded up, without overflow
        enough = jnp.sum(bits >= middle, axis=-1, keepdims=True) >= n
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    n = jnp.maximum(n, 1)
    shape = jnp.broadcast_shapes((*score.shape[:-1], 1), n.shape)
    bounds = jnp.full(shape, LOWEST), jnp.full(shape, HIGHEST)
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jax.lax.bitcast_convert_type(_ordered(low), jnp.float32)


def _ordered(bits: Array) -> Array:
    """Turn the bits of a float into an integer that compares as it does; its own inverse."""
    turned: Array = bits ^ ((bits >> 31) & HIGHEST)
    return turned


def keep(score_LxExKxC: Array, length_E: Array, total_B: Array, spread: str) -> Cut:
    """Mark the entries that are kept of each context, `[L, B, K, C]`.

    Args:
        score_LxExKxC: what each entry is worth.
        length_E: context tokens.
        total_B: int32, entries that may be kept of all layers and KV heads together; several in a
            row for each context where B is a multiple of E.
        spread: `head` and `layer` give each KV head or layer the same number, `all` gives the
            entries of the highest scores.
    """
    L, E, K, C = score_LxExKxC.shape
    groups = {"head": L * K, "layer": L, "all": 1}[spread]
    rows = len(total_B) // E

    def grouped(x_LxExKxC: Array) -> Array:
        return x_LxExKxC.swapaxes(0, 1).reshape(E, 1, groups, -1)

    valid = lengths_to_valid(length_E, C)[None, :, None]
    valid = grouped(jnp.broadcast_to(valid, score_LxExKxC.shape))
    n_ExnxG = jnp.broadcast_to(total_B.reshape(E, rows, 1) // groups, (E, rows, groups))
    found = cut(grouped(score_LxExKxC), valid, n_ExnxG)
    kept_BxLxKxC = found.kept.reshape(E * rows, L, K, C)
    threshold_BxG = found.threshold.reshape(E * rows, groups)
    threshold_BxLxK = jnp.repeat(threshold_BxG, L * K // groups, axis=1).reshape(-1, L, K)
    return Cut(kept_BxLxKxC.swapaxes(0, 1), threshold_BxLxK.swapaxes(0, 1))


def count_at(score_LxBxKxC: Array, length_B: Array) -> Array:
    """Count the entries that `keep` keeps with spread `all` at `PROFILE_RATIOS`, `[R, L, B, K]`.

    Every ratio divides by a whole number: the budget is ⌈tokens / ratio⌉ entries a KV head.
    """
    L, _, K, _ = score_LxBxKxC.shape
    totals = [L * K * -(-length_B // int(ratio)) for ratio in PROFILE_RATIOS]
    return jnp.stack([keep(score_LxBxKxC, length_B, total, "all").kept.sum(-1) for total in totals])


def keep_parts(score_LxExKxC: Array, length_E: Array, parts_LxBxK: Array) -> Cut:
    """Mark the entries that are kept where each KV head has its number, `[L, B, K, C]`."""
    L, E, K, C = score_LxExKxC.shape
    valid = lengths_to_valid(length_E, C)[None, :, None, None]
    parts_LxExnxK = parts_LxBxK.reshape(L, E, -1, K)
    found = cut(score_LxExKxC[:, :, None], valid, parts_LxExnxK)
    return Cut(found.kept.reshape(L, -1, K, C), found.threshold.reshape(L, -1, K))


def shares_at(profile_LxKxR: Array, ratio_B: Array) -> Array:
    """Return a profile's parts at ratios of tokens an entry, `[L, B, K]`.

    They are interpolated over the logarithm of the ratio.
    """
    ratios = jnp.log(jnp.asarray(PROFILE_RATIOS))
    at_B = jnp.clip(jnp.log(jnp.maximum(ratio_B, 1.0)), ratios[0], ratios[-1])
    upper_B = jnp.clip(jnp.searchsorted(ratios, at_B), 1, len(PROFILE_RATIOS) - 1)
    low, high = ratios[upper_B - 1], ratios[upper_B]
    weight_B = (at_B - low) / (high - low)
    parts_LxKxB = (
        profile_LxKxR[..., upper_B - 1] * (1 - weight_B) + profile_LxKxR[..., upper_B] * weight_B
    )
    return jnp.swapaxes(parts_LxKxB, 1, 2)


def whole_parts(share_LxBxK: Array, length_B: Array, total_B: Array) -> Array:
    """Return int32 entries a KV head `[L, B, K]` that together are the budget, or less.

    Shares are scaled until they fill it, none beyond the context's length; what is left by rounding
    down goes to the largest remainders, the first of equal ones.
    """
    L, B, K = share_LxBxK.shape
    share_BxG = jnp.maximum(share_LxBxK.swapaxes(0, 1).reshape(B, L * K), LEAST_PART)
    length_Bx1 = length_B[:, None].astype(jnp.float32)
    goal_B = jnp.minimum(total_B, L * K * length_B)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = bounds
        middle_B = (low_B + high_B) / 2
        filled_B = jnp.minimum(share_BxG * middle_B[:, None], length_Bx1).sum(1)
        return jnp.where(filled_B < goal_B, middle_B, low_B), jnp.where(
            filled_B < goal_B, high_B, middle_B
        )

    most_B = length_B / share_BxG.min(1)
    _, scale_B = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(most_B), most_B))
    wanted_BxG = jnp.minimum(share_BxG * scale_B[:, None], length_Bx1)
    whole_BxG = jnp.floor(wanted_BxG).astype(jnp.int32)
    left_B = goal_B - whole_BxG.sum(1)
    room_BxG = whole_BxG < length_B[:, None]
    whole_BxG += largest(wanted_BxG - whole_BxG, room_BxG, left_B)
    over_B = whole_BxG.sum(1) - goal_B  # by rounding of fp32, at most
    whole_BxG -= largest(whole_BxG, whole_BxG > 0, over_B)
    return whole_BxG.reshape(B, L, K).swapaxes(0, 1)
