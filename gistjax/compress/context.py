"""A compressed context: what a decoder reads in place of a context, alone or several joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gistjax.model.config import LlamaConfig
from gistjax.model.kv_cache import Cache, Kept
from gistjax.model.layer import take_positions
from gistjax.model.masks import lengths_to_valid


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CompressedContext:
    """X positions of soft tokens, or of keys and values, that stand behind a prompt's prefix."""

    prefix_ids_P: Array  # int32, the prompt before the context; the same in every row
    x_BxXxD: Array  # what the decoder reads, or what went in where keys and values came out
    kv: Cache | None  # keys are rotated to their positions behind the prefix
    valid_BxX: Array  # real positions
    cut_BxX: Array  # read by the slots only, hidden from question and answer
    position_BxX: Array  # rotary, from the prefix's end; fractions where slots are spread
    length_B: Array  # rotary positions that it takes up
    slots_B: Array  # slots used (context tokens where nothing is compressed)
    kept: Kept | None = None  # entries kept of the cache; there are no positions then, X = 0

    @property
    def size(self) -> int:
        """X, the positions that it takes in the decoder's sequence."""
        return self.valid_BxX.shape[1]

    @property
    def in_cache(self) -> bool:
        """Whether it is kept as keys and values."""
        return self.kv is not None or self.kept is not None

    @property
    def vectors(self) -> Array:
        """The slots as vectors `[B, X, …]`: soft tokens, or the values of the middle layer."""
        if self.kv is None:
            return self.x_BxXxD
        v_BxKxXxH = self.kv.v[len(self.kv.v) // 2]
        return jnp.swapaxes(v_BxKxXxH, 1, 2).reshape(*self.x_BxXxD.shape[:2], -1)

    def stored(self) -> tuple[Array, int]:
        """Slots, or entries kept (not packed), of each row `[B]`, and the bytes of one."""
        if self.kept is not None:
            in_layers = isinstance(self.kept, tuple)
            masks = [x.mask_BxKxX for x in self.kept] if in_layers else [*self.kept.mask_BxKxX]
            counts = [jnp.sum(mask, axis=(1, 2), dtype=jnp.int32) for mask in masks]
            k = jax.tree.leaves(self.kept)[0]
            return sum(counts[1:], counts[0]), 2 * k.shape[-1] * k.dtype.itemsize
        positions = max(self.slots_B.shape[0] * self.size, 1)
        arrays = self.x_BxXxD if self.kv is None else (self.kv.k, self.kv.v)
        sizes = [x.size // positions * x.dtype.itemsize for x in jax.tree.leaves(arrays)]
        return self.slots_B, sum(sizes)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the arrays that a decoder reads in its place, padding and tables included."""
        read = self.kv if self.kept is None else self.kept
        return sum(x.nbytes for x in jax.tree.leaves(self.x_BxXxD if read is None else read))

    def take(self, index_BxM: Array) -> CompressedContext:
        """Some positions of each row, the first `slots` of them in use and read by all."""
        valid_BxM = lengths_to_valid(self.slots_B, index_BxM.shape[1])
        return dataclasses.replace(
            self,
            x_BxXxD=take_positions(self.x_BxXxD, index_BxM),
            valid_BxX=valid_BxM,
            cut_BxX=jnp.zeros_like(valid_BxM),
            position_BxX=take_positions(self.position_BxX, index_BxM),
        )


def soft_context(prefix_ids_P: Array, x_BxXxD: Array, length_B: Array) -> CompressedContext:
    """Soft tokens, the first `length` of each row real."""
    valid_BxX = lengths_to_valid(length_B, x_BxXxD.shape[1])
    place_BxX = jnp.broadcast_to(jnp.arange(valid_BxX.shape[1]), valid_BxX.shape)
    cut_BxX = jnp.zeros_like(valid_BxX)
    return CompressedContext(
        prefix_ids_P, x_BxXxD, None, valid_BxX, cut_BxX, place_BxX, length_B, length_B
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """The keys and values of what a decoder has read, with room for more."""

    cache: Cache
    visible_BxU: Array  # positions of the cache that later tokens may look at
    position_B: Array  # the next token's rotary position
    first_free: int = field(metadata={"static": True})  # its index in the cache, in every row

    def repeat(self, n: int) -> DecodeState:
        """Each row n times in a row, for n questions on each context."""
        if n == 1:
            return self
        return dataclasses.replace(
            self,
            cache=self.cache.repeat(n),
            visible_BxU=jnp.repeat(self.visible_BxU, n, axis=0),
            position_B=jnp.repeat(self.position_B, n),
        )


def join(contexts: Sequence[CompressedContext], size: int, base: LlamaConfig) -> CompressedContext:
    """Join contexts of one row each, one behind another, in one row of `size` positions.

    Each stands where the one before ends. Keys are turned by as many positions as they move, which
    is exact, because a rotary position is a rotation.

    Args:
        contexts: of one form, with the same prefix, the first `slots` positions of each in use.
        base: sizes of the decoder, for its rotary frequencies.

    Returns:
        numpy arrays.
    """
    slots = [int(context.slots_B[0]) for context in contexts]
    starts = np.cumsum([0, *(int(context.length_B[0]) for context in contexts)], dtype=np.float32)

    def row(parts: Sequence[Any], axis: int) -> np.ndarray:
        """The used positions of each part in one row, padded with zeros."""
        used = [np.take(part, range(n), axis) for part, n in zip(parts, slots, strict=True)]
        joined = np.concatenate(used, axis)
        pads = [(0, 0)] * joined.ndim
        pads[axis] = (0, size - joined.shape[axis])
        return np.pad(joined, pads)

    positions = [
        context.position_BxX.astype(np.float32) + start
        for context, start in zip(contexts, starts, strict=False)
    ]
    caches = [
        jax.device_get(context.kv.turned(start, base))
        for context, start in zip(contexts, starts, strict=False)
        if context.kv is not None
    ]
    kv = jax.tree.map(lambda *parts: row(parts, parts[0].ndim - 2), *caches) if caches else None
    valid_1xX = np.arange(size)[None] < sum(slots)
    arrays: dict[str, Any] = {
        "prefix_ids_P": contexts[0].prefix_ids_P,
        "x_BxXxD": row([context.x_BxXxD for context in contexts], 1),
        "valid_BxX": valid_1xX,
        "cut_BxX": np.zeros_like(valid_1xX),
        "position_BxX": row(positions, 1),
        "length_B": np.asarray([starts[-1]], np.int32),
        "slots_B": np.asarray([sum(slots)], np.int32),
    }
    return CompressedContext(kv=kv, **arrays)
