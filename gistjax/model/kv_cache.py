"""The key/value cache: every layer's keys and values in buffers of fixed length.

Heads come before positions, `[B, K, U, H]`, so that attention reads each head's keys in one run.
The layers are stacked in one array, or a tuple of arrays, as the decoder keeps its own. Beside
them a cache may hold entries that were kept of a context read before, others for each KV head.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.model.codes import Codes, numbers
from gistjax.model.config import LlamaConfig
from gistjax.model.rope import apply_rope, rope_angles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeptLayer:
    """Entries of one layer, each KV head's own, and which of them it reads.

    Several rows that follow each other may share entries, through masks of their own or one mask.
    """

    k: Array  # [E, K, X, H], rotated; B is a multiple of E
    v: Array
    mask_BxKxX: Array  # True where a KV head reads an entry; B or E rows
    gate_BxKxX: Array | None = None  # fp32, in training: the mask as 1 or 0, with a gradient
    bits_B: Array | None = None  # int32, in training: read as files in so many bits have them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedEntries:
    """Entries of one context, of every layer and KV head one behind another: all rows read them.

    In 16 bits, or as codes of fewer. Keys in codes have a range for each KV head that keeps any,
    in this order, and channel; each value has its own. Of E contexts, each read by as many rows,
    the tables are `[L, E, K]`.
    """

    k_TxH: Array | Codes  # rotated; by layer, then KV head, then position; the last are padding
    v_TxH: Array | Codes
    start: Array  # int32 [L, K], or [K] of one layer: where those of a KV head begin
    count: Array  # how many they are
    most: int = field(metadata={"static": True})  # X; no KV head has more

    def layer(self, index: Array | int) -> PackedEntries:
        """The same, of one layer, whose keys' ranges are then those of its KV heads."""
        k = self.k_TxH
        if isinstance(k, Codes):
            range_LxK = (jnp.cumsum(self.count > 0) - 1).reshape(self.count.shape)
            k = k.of(range_LxK[index])
        return replace(self, k_TxH=k, start=self.start[index], count=self.count[index])

    def windows(self, queries: Array) -> KeptLayer:
        """Of each KV head of a layer X entries with its own among them, the others masked.

        Of codes, windows are cut first and unpacked then: no more than they is ever in 16 bits.

        Args:
            queries: those that read them. Windows are cut when these are there: XLA would cut those
                of all layers first, before a loop that decodes too, and hold them together.
        """
        # Not an optimization barrier, which the CPU's compiler drops: what it does not foresee.
        late = jnp.isnan(queries.ravel()[0]).astype(jnp.int32)  # 0; else all is lost anyway
        start_ExK = jnp.atleast_2d(self.start) + late
        first_ExK = jnp.minimum(start_ExK, self.v_TxH.shape[0] - self.most)

        def cut(x_TxH: Array) -> Array:
            # as integers: to cut from 16-bit numbers a CPU would make all of them 32 bits wide

            def window(at: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(x_TxH, at, self.most)

            bits = jnp.uint16 if x_TxH.dtype.itemsize == 2 else x_TxH.dtype
            x_TxH, dtype = jax.lax.bitcast_convert_type(x_TxH, bits), x_TxH.dtype
            x_ExKxXxH: Array = jax.vmap(jax.vmap(window))(first_ExK)
            return jax.lax.bitcast_convert_type(x_ExKxXxH, dtype)

        k: Any = self.k_TxH
        if isinstance(k, Codes):
            k = replace(k, code_TxW=cut(k.code_TxW)).of((..., None, slice(None)))
        else:
            k = cut(k)
        k, v = numbers(k), numbers(jax.tree.map(cut, self.v_TxH))
        number_ExKxX = (first_ExK - start_ExK)[..., None] + jnp.arange(self.most)
        mask_ExKxX = (number_ExKxX >= 0) & (number_ExKxX < self.count[..., None])
        return KeptLayer(k, v, mask_ExKxX)


Kept = Any
"""Entries of every layer: a tuple of `KeptLayer`, or one whose arrays begin with an axis L; or
`PackedEntries`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CacheLayer:
    """One layer's keys and values `[B, K, U, H]`, and where the next ones go."""

    k: Array
    v: Array
    start: Array | int
    kept: KeptLayer | PackedEntries | None = None

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

        def part(x: Any) -> Any:
            if isinstance(x, PackedEntries):
                return x.layer(index)
            if isinstance(x, tuple):
                return x[index]
            return jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), x
            )

        return CacheLayer(part(self.k), part(self.v), start, part(self.kept))

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
        k, v = jax.tree.map(lambda x: jnp.repeat(x, n, axis=rows), (self.k, self.v))
        return replace(self, k=k, v=v)  # rows that follow each other share what is kept

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
