"""Kept entries as a file in few bits gives them back, within a compiled program.

The counterpart of rounding on the host, for masked entries of many contexts: on a CPU to the last
bit the same numbers, so that training reads what will be read from files.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.model.kv_cache import KeptLayer

AS_THEY_ARE = 16
"""Bits of entries that are not rounded, of whatever dtype."""
LEAST_HALF = -24
"""Exponent of two of the least positive number in half precision."""


def as_stored(kept: KeptLayer) -> KeptLayer:
    """Return one layer's entries as each row reads them, `[B, K, X, H]`, each in its own bits.

    Each channel of a KV head's keys has the range of those that the row keeps, and each value its
    own. What the row does not keep stays as it is. Going back the gradient passes as if nothing
    had been rounded (straight-through, Bengio et al. 2013, arXiv:1308.3432).

    Args:
        kept: with `bits_B`; without them it is returned as it is.
    """
    if kept.bits_B is None:
        return kept
    bits_Bx1x1x1 = kept.bits_B.reshape(-1, 1, 1, 1)
    B = len(bits_Bx1x1x1)
    kept = jax.tree.map(lambda x: jnp.repeat(x, B // len(x), axis=0), kept)
    own = kept.mask_BxKxX[..., None]
    k, v = (_rounded(x, own, axis, bits_Bx1x1x1) for x, axis in ((kept.k, 2), (kept.v, 3)))
    return replace(kept, k=k, v=v, bits_B=None)


def _rounded(x_BxKxXxH: Array, own_BxKxXx1: Array, axis: int, bits_Bx1x1x1: Array) -> Array:
    """Round what is a row's own, scale and offset shared along an axis (`runtime.quantize`)."""
    wide = x_BxKxXxH.astype(jnp.float32)
    low = jnp.min(jnp.where(own_BxKxXx1, wide, jnp.inf), axis=axis, keepdims=True)
    high = jnp.max(jnp.where(own_BxKxXx1, wide, -jnp.inf), axis=axis, keepdims=True)
    levels = (jnp.left_shift(1, bits_Bx1x1x1) - 1).astype(jnp.float32)
    offset = -_half_above(-low)
    scale = jnp.maximum(_half_above((high - offset) * (1 / levels)), 2.0**LEAST_HALF)
    codes = jnp.clip(jnp.rint((wide - offset) * (1 / scale)), 0, levels)
    rounds = own_BxKxXx1 & (bits_Bx1x1x1 < AS_THEY_ARE)
    stored = jnp.where(rounds, (codes * scale + offset).astype(x_BxKxXxH.dtype), x_BxKxXxH)
    return x_BxKxXxH - jax.lax.stop_gradient(x_BxKxXxH) + jax.lax.stop_gradient(stored)


def _half_above(x: Array) -> Array:
    """Return the least numbers of half precision that are not below x, in fp32.

    By arithmetic: XLA may leave out a conversion to fp16 and back.
    """
    _, exponent = jnp.frexp(x)  # x is below two to that power
    step = jnp.maximum(exponent - 11, LEAST_HALF)
    return jnp.ceil(x * _two_to(-step)) * _two_to(step)


def _two_to(exponent: Array) -> Array:
    """Return two to whole powers, fp32."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
