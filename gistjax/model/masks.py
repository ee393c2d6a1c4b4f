"""Who may look at whom, as boolean arrays.

A mask `[B, T, U]` is True where query t may look at key u. Padding is never looked at. A padded
query looks at itself alone, so that no softmax runs over nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def lengths_to_valid(length_B: Array, size: int) -> Array:
    """`[B, size]`, True at the first `length` positions of each row."""
    return jnp.arange(size) < length_B[:, None]


def causal_mask(valid_BxT: Array) -> Array:
    """Each real token sees itself and the real ones before it."""
    T = valid_BxT.shape[1]
    return _visible(valid_BxT, jnp.tril(jnp.ones((T, T), bool)))


def bidirectional_mask(valid_BxT: Array) -> Array:
    """Each real token sees every real one."""
    T = valid_BxT.shape[1]
    return _visible(valid_BxT, jnp.ones((T, T), bool))


def context_mask(valid_BxT: Array, prefix: int) -> Array:
    """Each real token sees the real ones before it, and those behind the prefix one another."""
    T = valid_BxT.shape[1]
    behind = jnp.arange(T) >= prefix
    return _visible(valid_BxT, jnp.tril(jnp.ones((T, T), bool)) | (behind[:, None] & behind))


def _visible(valid_BxT: Array, order_TxT: Array) -> Array:
    real_BxTxT = valid_BxT[:, None, :] & valid_BxT[:, :, None] & order_TxT
    return real_BxTxT | jnp.eye(valid_BxT.shape[1], dtype=bool)
