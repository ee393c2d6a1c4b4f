"""The key/value cache: every layer's keys and values, stacked, in a buffer of fixed length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class Cache:
    """Keys and values of U positions; which of them hold anything is the mask's business."""

    k_LxBxUxKxH: Array
    v_LxBxUxKxH: Array

    @classmethod
    def empty(
        cls, layers: int, batch: int, length: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
    ) -> Cache:
        """A cache of zeros."""
        shape = (layers, batch, length, kv_heads, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, layer: Array, start: Array | int, k_BxTxKxH: Array, v_BxTxKxH: Array) -> Cache:
        """Writes T positions of one layer from index `start` on, the same index in every row."""
        at = (layer, 0, start, 0, 0)
        return Cache(
            jax.lax.dynamic_update_slice(self.k_LxBxUxKxH, k_BxTxKxH[None], at),
            jax.lax.dynamic_update_slice(self.v_LxBxUxKxH, v_BxTxKxH[None], at),
        )

    def layer(self, index: Array) -> tuple[Array, Array]:
        """Keys and values `[B, U, K, H]` of one layer."""
        return (
            jax.lax.dynamic_index_in_dim(self.k_LxBxUxKxH, index, keepdims=False),
            jax.lax.dynamic_index_in_dim(self.v_LxBxUxKxH, index, keepdims=False),
        )

    def insert(self, start: int, other: Cache) -> Cache:
        """Copies another cache of the same rows in, from index `start` on."""
        at = (0, 0, start, 0, 0)
        return Cache(
            jax.lax.dynamic_update_slice(self.k_LxBxUxKxH, other.k_LxBxUxKxH, at),
            jax.lax.dynamic_update_slice(self.v_LxBxUxKxH, other.v_LxBxUxKxH, at),
        )

    def part(self, start: int, length: int) -> Cache:
        """The `length` positions from index `start` on."""
        return Cache(
            self.k_LxBxUxKxH[:, :, start : start + length],
            self.v_LxBxUxKxH[:, :, start : start + length],
        )
