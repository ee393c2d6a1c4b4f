"""What a decoder reads in place of a context, how it stands in its sequence, and what is left once it was read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from gistjax.model.kv_cache import Cache
from gistjax.model.llama import take_positions
from gistjax.model.masks import lengths_to_valid


@struct.dataclass
class CompressedContext:
    """What stands between prefix and question: X positions of soft tokens, or of keys and values."""

    x_BxXxD: Array  # what the decoder reads, or what went in where keys and values came out
    kv: Cache | None
    valid_BxX: Array  # real positions
    cut_BxX: Array  # read by the slots only, hidden from question and answer
    position_BxX: Array  # rotary, from the memory's start; fractions where slots are spread
    length_B: Array  # rotary positions that the memory takes up
    slots_B: Array  # slots used (context tokens where nothing is compressed)

    @property
    def size(self) -> int:
        """X, the positions that this memory takes in the decoder's sequence."""
        return self.valid_BxX.shape[1]

    @property
    def vectors(self) -> Array:
        """The slots as vectors `[B, X, …]`: soft tokens, or the values of the middle layer."""
        if self.kv is None:
            return self.x_BxXxD
        v_BxKxXxH = self.kv.v[len(self.kv.v) // 2]
        return jnp.swapaxes(v_BxKxXxH, 1, 2).reshape(*self.x_BxXxD.shape[:2], -1)

    def take(self, index_BxM: Array) -> CompressedContext:
        """Some positions of each row, the first `slots` of them in use and read by all."""
        valid_BxM = lengths_to_valid(self.slots_B, index_BxM.shape[1])
        x_BxMxD, position_BxM = (
            take_positions(x, index_BxM) for x in (self.x_BxXxD, self.position_BxX)
        )
        return self.replace(  # type: ignore[attr-defined, no-any-return]
            x_BxXxD=x_BxMxD,
            valid_BxX=valid_BxM,
            cut_BxX=jnp.zeros_like(valid_BxM),
            position_BxX=position_BxM,
        )


@struct.dataclass
class Sequence:
    """What the decoder reads: prefix · memory · tokens."""

    x_BxTxD: Array
    valid_BxT: Array  # real positions
    cut_BxT: Array  # hidden from those after the cut
    after_BxT: Array
    position_BxT: Array  # rotary

    def compact(self) -> Sequence:
        """Real positions first, in their order, padding last: where nothing is cut, causality is then mask enough."""
        order_BxT = jnp.argsort(~self.valid_BxT, axis=1, stable=True)
        return jax.tree.map(lambda x: jax.vmap(_permute)(x, order_BxT), self)


def _permute(x_Tx: Array, order_T: Array) -> Array:
    return x_Tx.at[order_T].get(mode="promise_in_bounds", unique_indices=True)


@struct.dataclass
class DecodeState:
    """What a decoder has read, as keys and values with room for more."""

    cache: Cache
    visible_BxU: Array  # positions of the cache that later tokens may look at
    position_B: Array  # the next token's rotary position
    first_free: int = struct.field(
        pytree_node=False
    )  # its index in the cache, the same in every row

    def repeat(self, n: int) -> DecodeState:
        """Each row n times in a row, for n questions on each context."""
        if n == 1:
            return self
        return self.replace(  # type: ignore[attr-defined, no-any-return]
            cache=self.cache.repeat(n),
            visible_BxU=jnp.repeat(self.visible_BxU, n, axis=0),
            position_B=jnp.repeat(self.position_B, n),
        )


def soft_context(x_BxXxD: Array, length_B: Array) -> CompressedContext:
    """Soft tokens, the first `length` of each row real."""
    valid_BxX = lengths_to_valid(length_B, x_BxXxD.shape[1])
    place_BxX = jnp.broadcast_to(jnp.arange(valid_BxX.shape[1]), valid_BxX.shape)
    return CompressedContext(
        x_BxXxD, None, valid_BxX, jnp.zeros_like(valid_BxX), place_BxX, length_B, length_B
    )


def join(memories: list[CompressedContext], size: int) -> CompressedContext:
    """Memories of one row each, of soft tokens, one behind another in one row of `size` positions; numpy arrays."""
    slots = [int(memory.slots_B[0]) for memory in memories]
    starts = np.cumsum([0, *(int(memory.length_B[0]) for memory in memories)], dtype=np.float32)
    x_SxD = np.concatenate([m.x_BxXxD[0, :n] for m, n in zip(memories, slots, strict=True)])
    position_S = np.concatenate(
        [
            m.position_BxX[0, :n] + start
            for m, n, start in zip(memories, slots, starts, strict=False)
        ],
        dtype=np.float32,
    )
    room = size - len(x_SxD)
    valid_1xX = np.arange(size)[None] < len(x_SxD)
    arrays: dict[str, Any] = {
        "x_BxXxD": np.pad(x_SxD, ((0, room), (0, 0)))[None],
        "valid_BxX": valid_1xX,
        "cut_BxX": np.zeros_like(valid_1xX),
        "position_BxX": np.pad(position_S, (0, room))[None],
        "length_B": np.asarray([starts[-1]], np.int32),
        "slots_B": np.asarray([len(x_SxD)], np.int32),
    }
    return CompressedContext(kv=None, **arrays)
