"""From scores to what each question may read: exact budgets, and the straight-through gate."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from launch.selection.options import RATIOS

LOWEST, HIGHEST = -(2**31), 2**31 - 1


class Cut(NamedTuple):
    """Which entries are kept: those whose score reaches the threshold of the ratio."""

    score_LxBxKxT: jax.Array
    threshold_LxBxKxR: jax.Array
    kept_LxBxKxR: jax.Array  # number of entries


def _ordered(bits: jax.Array) -> jax.Array:
    """Return the bits of an fp32 as an int32 that compares as it does; its own inverse."""
    return bits ^ ((bits >> 31) & HIGHEST)


def nth_largest(x: jax.Array, n: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return exactly the n-th largest of x over axes, by bisection on the bits of fp32.

    Sorting 30 layers of scores for six ratios would take longer than the model's own pass.

    Args:
        x: `[...]`.
        n: `x`'s axes without `axes`, or ones there, and R last.

    Returns:
        As `n`, with `axes` put in as ones.
    """
    bits = _ordered(jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32))[..., None]
    n = jnp.expand_dims(n, axes)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # mean rounded up, without overflow
        enough = jnp.sum(bits >= middle, axes, keepdims=True) >= n
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    bounds = jnp.full(n.shape, LOWEST, jnp.int32), jnp.full(n.shape, HIGHEST, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 33, halve, bounds)
    return jax.lax.bitcast_convert_type(_ordered(low), jnp.float32)


def entries_a_head(length_B: jax.Array, slots: tuple[int, ...] = ()) -> jax.Array:
    """Return the budget: `[B, R]` entries a KV head, on average.

    Args:
        slots: entries for any context that has so many, in place of the first ratios.
    """
    by_ratio = jnp.ceil(length_B[:, None] / jnp.array(RATIOS)).astype(jnp.int32)
    fixed = jnp.minimum(jnp.array(slots, jnp.int32), length_B[:, None])
    return jnp.concatenate([fixed, by_ratio[:, len(slots) :]], 1)


def cut_by_score(
    score_LxBxKxT: jax.Array,
    context_BxT: jax.Array,
    length_B: jax.Array,
    profile_LxKxR: jax.Array | None = None,
    slots: tuple[int, ...] = (),
) -> Cut:
    """Return what is kept of each context at each ratio.

    Args:
        context_BxT: marks the context's tokens; others are kept always and count for nothing.
        length_B: number of those tokens.
        profile_LxKxR: the part of its entries that each KV head keeps; without it one threshold
            over all KV heads of all layers decides.
        slots: as in `entries_a_head`.
    """
    L, B, K, _ = score_LxBxKxT.shape
    score = jnp.where(context_BxT[None, :, None], score_LxBxKxT, -jnp.inf)
    a_head_BxR = entries_a_head(length_B, slots)
    budget_BxR = a_head_BxR * L * K
    if profile_LxKxR is None:
        threshold = nth_largest(score, budget_BxR, (0, 2, 3))[:, :, :, 0]
        threshold = jnp.broadcast_to(threshold, (L, B, K, len(RATIOS)))
    else:
        n = fixed_parts(profile_LxKxR, budget_BxR, length_B)
        threshold = nth_largest(score, jnp.maximum(n, 1), (3,))[:, :, :, 0]
        threshold = jnp.where(n > 0, threshold, jnp.inf)
    everything = (a_head_BxR == length_B[:, None])[None, :, None]
    threshold = jnp.where(everything, -jnp.inf, threshold)
    kept = (score[..., None] >= threshold[:, :, :, None]) & context_BxT[None, :, None, :, None]
    return Cut(score_LxBxKxT, threshold, jnp.sum(kept, 3))


def fixed_parts(profile_LxKxR: jax.Array, budget_BxR: jax.Array, length_B: jax.Array) -> jax.Array:
    """Return the entries that each KV head keeps, `[L, B, K, R]`, in whole numbers.

    Parts are rounded down, and what is left of the budget goes to the largest remainders, except to
    KV heads that keep all they have.
    """
    L, K, R = profile_LxKxR.shape
    B = len(length_B)
    full = length_B[None, :, None, None]
    share = profile_LxKxR[:, None] / profile_LxKxR.sum((0, 1)) * budget_BxR[None, :, None]
    wanted = jnp.minimum(share, full)
    whole = jnp.floor(wanted)
    remainder = jnp.where(whole < full, wanted - whole, -1.0)
    remainder = remainder.transpose(1, 3, 0, 2).reshape(B, R, L * K)
    rank = jnp.argsort(jnp.argsort(-remainder, -1), -1)
    left_BxR = budget_BxR - whole.sum((0, 2)).astype(jnp.int32)
    more = (rank < left_BxR[..., None]).reshape(B, R, L, K).transpose(2, 0, 3, 1)
    return jnp.minimum(whole + more, full).astype(jnp.int32)


class Reads(NamedTuple):
    """What each token of a tail may read of a layer's entries; see `attention.Part`."""

    mask: jax.Array
    bias: jax.Array | None = None
    gate: jax.Array | None = None


class Asking(NamedTuple):
    """Who reads, and where."""

    ratio_BxM: jax.Array  # places in RATIOS
    token_BxT: jax.Array  # prompt or context
    context_BxT: jax.Array
    length_B: jax.Array


def reads(cut: Cut, bias_K: jax.Array | None, asking: Asking, temperature: float) -> Reads:
    """Return what the tokens may read in one layer (a `Cut` without its first axis).

    Args:
        bias_K: if given, times log(tokens an entry) it is added to logits of the context's entries.
        temperature: of the gate; 0 for none.
    """
    token, context = asking.token_BxT[:, None, None], asking.context_BxT[:, None, None]

    def at_ratio(x_BxKxR: jax.Array) -> jax.Array:
        ratio = asking.ratio_BxM[:, None]
        ratio = jnp.broadcast_to(ratio, (*x_BxKxR.shape[:2], ratio.shape[2]))
        return jnp.take_along_axis(x_BxKxR, ratio, 2)

    score, threshold = cut.score_LxBxKxT[:, :, None], at_ratio(cut.threshold_LxBxKxR)[..., None]
    mask = (~context | (score >= threshold)) & token
    bias = gate = None
    if bias_K is not None:
        kept = jnp.maximum(at_ratio(cut.kept_LxBxKxR), 1)
        tokens_an_entry = jnp.log(asking.length_B[:, None, None] / kept)
        bias = jnp.where(context, (bias_K[None, :, None] * tokens_an_entry)[..., None], 0.0)
    if temperature:
        gate = straight_through(mask, score, threshold, context, temperature)
        gate = jnp.where(token, gate, 0.0)
    return Reads(mask, bias, gate)


def straight_through(
    mask: jax.Array, score: jax.Array, threshold: jax.Array, context: jax.Array, temperature: float
) -> jax.Array:
    """Return the mask as 1 or 0, with the gradient of sigmoid((score - threshold) / temperature).

    Where nothing is decided (the prompt, ratio 1) there is no gradient.
    """
    decided = jnp.isfinite(threshold)
    soft = jax.nn.sigmoid((score - jnp.where(decided, threshold, 0.0)) / temperature)
    soft = jnp.where(context & decided, soft, 0.0)
    return mask + soft - jax.lax.stop_gradient(soft)
