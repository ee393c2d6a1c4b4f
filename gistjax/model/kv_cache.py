"""The key/value cache: every layer's keys and values in buffers of fixed length.

Heads come before positions, `[B, K, U, H]`, so that attention reads each head's keys in one run.
The layers are stacked in one array, or a tuple of arrays, as the decoder keeps its own. Beside
them a cache may hold entries that were kept of a context read before, others for each KV head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.model.config import LlamaConfig
from gistjax.model.rope import apply_rope, rope_angles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeptLayer:
    """Entries of one layer, and which KV head reads which of them.

    Either each KV head has its own, J = K, or all stand in one row, J = 1: then a mask that gives
    each entry to one KV head packs unequal numbers without padding. Several rows that follow each
    other may share entries, each with a mask of its own.
    """

    k: Array  # [E, J, X, H], rotated; B is a multiple of E
    v: Array
    mask_BxKxX: Array  # True where a KV head reads an entry


Kept = Any
"""Entries of every layer: a tuple of `KeptLayer`, or one whose arrays begin with an axis L."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CacheLayer:
    """One layer's keys and values `[B, K, U, H]`, and where the next ones go."""

    k: Array
    v: Array
    start: Array | int
    kept: KeptLayer | None = None

    def write(self, k_BxTxKxH: Array, v_BxTxKxH: Array) -> CacheLayer:
        """Write T positions, from the same index on in every row."""
        k, v = (
            jax.lax.dynamic_update_slice(
                old_BxKxUxH, jnp.swapaxes(new_BxTxKxH, 1, 2), (0, 0, self.start, 0)
            )
            for old_BxKxUxH, new_BxTxKxH in ((self.k, k_BxTxKxH), (self.v, v_BxTxKxH))
        )
        return replace(self, k=k, v=v)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of U positions; which of them hold anything is the mask's business."""

    k: Any  # [L, B, K, U, H], or L arrays [B, K, U, H]
    v: Any
    kept: Kept | None = None  # read by every position, beside what its mask shows

    @classmethod
    def empty(
        cls, config: LlamaConfig, batch: int, length: int, dtype: jnp.dtype, stacked: bool
    ) -> Cache:
        """A cache of zeros."""
        layers, shape = config.n_layers, (batch, config.n_kv_heads, length, config.head_dim)
        if stacked:
            return cls(*(jnp.zeros((layers, *shape), dtype) for _ in range(2)))
        return cls(*(tuple(jnp.zeros(shape, dtype) for _ in range(layers)) for _ in range(2)))

    @property
    def length(self) -> int:
        """U."""
        length: int = jax.tree.leaves(self.k)[0].shape[-2]
        return length

    def layer(self, index: Array | int, start: Array | int) -> CacheLayer:
        """One layer's part; what it is given next goes to index `start`."""
        if isinstance(self.k, tuple):
            kept = None if self.kept is None else self.kept[index]
            return CacheLayer(self.k[index], self.v[index], start, kept)
        k, v, kept = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False),
            (self.k, self.v, self.kept),
        )
        return CacheLayer(k, v, start, kept)

    def put(self, index: Any, layer: CacheLayer) -> Cache:
        """The cache with one layer's part replaced."""
        if isinstance(self.k, tuple):
            k, v = (
                (*old[:index], new, *old[index + 1 :])
                for old, new in ((self.k, layer.k), (self.v, layer.v))
            )
        else:
            k, v = (
                jax.lax.dynamic_update_index_in_dim(old, new, index, 0)
                for old, new in ((self.k, layer.k), (self.v, layer.v))
            )
        return replace(self, k=k, v=v)

    def insert(self, start: int, other: Cache) -> Cache:
        """Copy another cache of the same rows in, from index `start` on."""
        k, v = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=-2),
            (self.k, self.v),
            (other.k, other.v),
        )
        return replace(self, k=k, v=v)

    def take(self, index_BxM: Array) -> Cache:
        """Some positions of each row.

        As a product with a one-hot matrix: its gradient is a product too, not a scatter, which on a
        GPU is slow and adds in an order of its own.
        """
        U = self.length

        def gather(x: Array) -> Array:
            chosen_BxMxU = jax.nn.one_hot(index_BxM, U, dtype=x.dtype)
            return jnp.einsum("bmu,...bkuh->...bkmh", chosen_BxMxU, x)

        cache: Cache = jax.tree.map(gather, self)
        return cache

    def repeat(self, n: int) -> Cache:
        """Each row n times in a row."""
        rows = 0 if isinstance(self.k, tuple) else 1
        cache: Cache = jax.tree.map(lambda x: jnp.repeat(x, n, axis=rows), self)
        return cache

    def turned(self, by: Array | float, config: LlamaConfig) -> Cache:
        """The same entries `by` positions further on.

        A rotary position is a rotation and rotations add up: keys are turned by the difference,
        in layers whose keys are rotated at all.
        """
        angles = rope_angles(config, jnp.reshape(jnp.asarray(by, jnp.float32), (1, 1)))
        turned = jax.tree.map(lambda k: apply_rope(k, angles), self.k)
        if isinstance(self.k, tuple):
            each = zip(config.rotates, turned, self.k, strict=True)
            turned = tuple(new if rotates else old for rotates, new, old in each)
        elif config.unrotated_layers:
            rotates_Lx1 = jnp.reshape(jnp.asarray(config.rotates), (-1, 1, 1, 1, 1))
            turned = jnp.where(rotates_Lx1, turned, self.k)
        return replace(self, k=turned)
