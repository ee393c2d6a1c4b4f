"""The M windows of a context, one a slot, as in adaptive pooling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def windows(length_B: Array, slots_B: Array, M: int, C: int) -> Array:
    """`[B, M, C]`: True where token c lies in slot m's window.

    Slot m of s slots over n tokens covers `floor(m·n/s) … ceil((m+1)·n/s) - 1`, as in adaptive
    pooling: windows keep the order, leave no token out, overlap by at most one token where s does
    not divide n, and none of the s is empty.
    """
    n_Bx1, s_Bx1 = length_B[:, None], jnp.maximum(slots_B[:, None], 1)
    m_M = jnp.arange(M)
    first_BxM = m_M * n_Bx1 // s_Bx1
    end_BxM = -(-(m_M + 1) * n_Bx1 // s_Bx1)
    c_C = jnp.arange(C)
    inside_BxMxC = (c_C >= first_BxM[:, :, None]) & (c_C < end_BxM[:, :, None])
    return inside_BxMxC & (m_M < s_Bx1)[:, :, None] & (c_C < n_Bx1)[:, None, :]


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last axis in fp32 where the mask holds; zeros where it holds nowhere."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(top))
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def window_means(states_BxCxD: Array, length_B: Array, slots_B: Array, M: int) -> Array:
    """Means of the states in each window, `[B, M, D]`."""
    inside_BxMxC = windows(length_B, slots_B, M, states_BxCxD.shape[1])
    weights_BxMxC = masked_softmax(jnp.zeros(inside_BxMxC.shape), inside_BxMxC)
    return weights_BxMxC.astype(states_BxCxD.dtype) @ states_BxCxD


def window_centres(length_B: Array, slots_B: Array, M: int) -> Array:
    """The middle of each slot's window, `[B, M]`, as a fractional token position."""
    return (jnp.arange(M) + 0.5) * (length_B / jnp.maximum(slots_B, 1))[:, None] - 0.5


def window_ends(length_B: Array, slots_B: Array, M: int) -> Array:
    """The last token of each slot's window, `[B, M]`; of unused slots, the row's last."""
    end_BxM = -(-(jnp.arange(M) + 1) * length_B[:, None] // jnp.maximum(slots_B[:, None], 1))
    return jnp.clip(end_BxM, 1, length_B[:, None]) - 1
