"""Who may look at whom: as boolean arrays, or as lengths that a fused kernel takes.

A mask `[B, T, U]` is True where query t may look at key u. Padding is never looked at. A padded
query looks at itself alone, so that no softmax runs over nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bidirectional:
    """Real tokens behind a prefix see every real one; those of the prefix see themselves causally.

    What padding sees is undefined: nobody reads it.
    """

    length_B: Array  # of real tokens, the prefix's too
    prefix: int = field(default=0, metadata={"static": True})

    def array(self, size: int) -> Array:
        """The mask `[B, size, size]`."""
        behind = jnp.arange(size) >= self.prefix
        order_TxT = jnp.tril(jnp.ones((size, size), bool)) | (behind[:, None] & behind)
        return _visible(lengths_to_valid(self.length_B, size), order_TxT)


Mask = Array | Bidirectional
"""`[B, T, U]`, or what stands for one whose queries and keys are the same positions."""


def lengths_to_valid(length_B: Array, size: int) -> Array:
    """`[B, size]`, True at the first `length` positions of each row."""
    return jnp.arange(size) < length_B[:, None]


def causal_mask(valid_BxT: Array) -> Array:
    """Each real token sees itself and the real ones before it."""
    T = valid_BxT.shape[1]
    return _visible(valid_BxT, jnp.tril(jnp.ones((T, T), bool)))


def _visible(valid_BxT: Array, order_TxT: Array) -> Array:
    real_BxTxT = valid_BxT[:, None, :] & valid_BxT[:, :, None] & order_TxT
    return real_BxTxT | jnp.eye(valid_BxT.shape[1], dtype=bool)
