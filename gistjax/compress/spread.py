"""How a budget of kept entries is spread over layers and KV heads, and which entries that keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.model.masks import lengths_to_valid

PROFILE_RATIOS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Tokens an entry at which a profile has its parts; between them they are interpolated."""

LEAST_PART = 1e-6
HALVINGS = 40


def largest(score: Array, valid: Array, n: Array) -> Array:
    """Mark the n largest scores over the last axis, among the valid; of equal ones the first.

    Args:
        n: int32, in the other axes' shape.
    """
    score = jnp.where(valid, score.astype(jnp.float32), -jnp.inf)
    order = jnp.argsort(score, axis=-1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return (rank < n[..., None]) & valid


def keep(score_LxBxKxC: Array, length_B: Array, total_B: Array, spread: str) -> Array:
    """Mark the entries that are kept of each context, `[L, B, K, C]`.

    Args:
        score_LxBxKxC: what each entry is worth.
        length_B: context tokens.
        total_B: int32, entries that may be kept of all layers and KV heads together.
        spread: `head` and `layer` give each KV head or layer the same number, `all` gives the
            entries of the highest scores.
    """
    L, B, K, C = score_LxBxKxC.shape
    groups = {"head": L * K, "layer": L, "all": 1}[spread]

    def grouped(x_LxBxKxC: Array) -> Array:
        return x_LxBxKxC.swapaxes(0, 1).reshape(B, groups, -1)

    n_BxG = jnp.broadcast_to(total_B[:, None] // groups, (B, groups))
    valid = lengths_to_valid(length_B, C)[None, :, None]
    valid = grouped(jnp.broadcast_to(valid, score_LxBxKxC.shape))
    kept = largest(grouped(score_LxBxKxC), valid, n_BxG)
    return kept.reshape(B, L, K, C).swapaxes(0, 1)


def count_at(score_LxBxKxC: Array, length_B: Array) -> Array:
    """Count the entries that `keep` keeps with spread `all` at `PROFILE_RATIOS`, `[R, L, B, K]`.

    Every ratio divides by a whole number: the budget is ⌈tokens / ratio⌉ entries a KV head.
    """
    L, _, K, _ = score_LxBxKxC.shape
    totals = [L * K * -(-length_B // int(ratio)) for ratio in PROFILE_RATIOS]
    return jnp.stack([keep(score_LxBxKxC, length_B, total, "all").sum(-1) for total in totals])


def keep_parts(score_LxBxKxC: Array, length_B: Array, parts_LxBxK: Array) -> Array:
    """Mark the entries that are kept where each KV head has its number, `[L, B, K, C]`."""
    valid = lengths_to_valid(length_B, score_LxBxKxC.shape[-1])[None, :, None]
    return largest(score_LxBxKxC, valid, parts_LxBxK)


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
