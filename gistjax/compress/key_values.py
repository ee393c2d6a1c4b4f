"""The form in which slots are kept as keys and values of every layer.

The context stands in the sequence while it is compressed, before the slots or around them, and is
hidden from what follows by the gist mask. Up to the slots that mask hides nothing, so that one
causal pass makes their keys and values, and the context is not needed any more.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.compress.compressor import Compressor
from gistjax.compress.context import CompressedContext, soft_context
from gistjax.compress.sequence import Sequence, make_sequence
from gistjax.compress.soft_tokens import positions_of, spread_out
from gistjax.compress.windows import window_ends
from gistjax.model.kv_cache import Cache
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA
from gistjax.model.masks import causal_mask, lengths_to_valid


@dataclass(frozen=True)
class KeyValues:
    """Slots behind the context, or inside it in the place of each window's last token."""

    spread: bool
    inside: bool

    def place(
        self,
        base: Llama,
        compressor: Compressor,
        slots: CompressedContext,
        ids_BxC: Array,
        length_B: Array,
    ) -> CompressedContext:
        """The context with its slots, cut off from what follows: the plain form of what is kept."""
        context = soft_context(slots.prefix_ids_P, base.embed(ids_BxC), length_B)
        if self.inside:
            return _inside(context, slots)
        if self.spread:
            return _behind(context, spread_out(slots, compressor, length_B))
        return _behind(
            context,
            dataclasses.replace(
                slots,
                position_BxX=slots.position_BxX + length_B[:, None],
                length_B=length_B + slots.slots_B,
            ),
        )

    def keep(
        self, base: Llama, lora: LoRA | None, placed: CompressedContext, length_B: Array, M: int
    ) -> CompressedContext:
        """The slots' keys and values."""
        sequence = make_sequence(base, placed).compact()
        B, T = sequence.valid_BxT.shape
        _, cache = base(
            sequence.x_BxTxD,
            self.positions(sequence),
            lora=lora,
            cache=base.empty_cache(B, T),
            # Of the last layer only keys and values count.
            logit_positions_BxW=jnp.zeros((B, 1), jnp.int32),
        )
        assert cache is not None
        P = placed.prefix_ids_P.shape[0]
        if self.inside:
            ends_BxM = window_ends(length_B, placed.slots_B, M)
            return dataclasses.replace(placed.take(ends_BxM), kv=cache.take(P + ends_BxM))
        C = placed.size - M
        places_BxM = jnp.minimum(P + length_B[:, None] + jnp.arange(M), T - 1)
        slots: CompressedContext = jax.tree.map(lambda x: x if x.ndim < 2 else x[:, C:], placed)
        return dataclasses.replace(slots, kv=cache.take(places_BxM))

    def positions(self, sequence: Sequence) -> Array:
        """Those of the slots, or the same in every row."""
        return positions_of(sequence, self.spread)

    def mask(self, sequence: Sequence) -> Array:
        """The gist mask."""
        return gist_mask(sequence.valid_BxT, sequence.cut_BxT, sequence.after_BxT)


def gist_mask(valid_BxT: Array, cut_BxT: Array, after_BxT: Array) -> Array:
    """Causal, but what comes after the slots does not see what they stand for.

    Mu et al. 2023 (arXiv:2304.08467), section 3.

    Args:
        valid_BxT: real positions.
        cut_BxT: positions that are compressed away (the context).
        after_BxT: positions that may look only around the cut (question and answer).
    """
    hidden_BxTxT = after_BxT[:, :, None] & cut_BxT[:, None, :]
    return causal_mask(valid_BxT) & ~hidden_BxTxT


def prefix_cache(
    base: Llama, lora: LoRA | None, prefix_ids_P: Array, rows: int, size: int
) -> Cache:
    """A cache of `size` positions that begins with the prefix, the same in every row."""
    P = prefix_ids_P.shape[0]
    cache = base.empty_cache(rows, size)
    if P:
        _, prefix = base(
            base.embed(prefix_ids_P)[None],
            jnp.arange(P)[None],
            lora=lora,
            cache=base.empty_cache(1, P),
            logit_positions_BxW=jnp.zeros((1, 1), jnp.int32),
        )
        assert prefix is not None
        cache = cache.insert(0, prefix.repeat(rows))
    return cache


def _behind(context: CompressedContext, slots: CompressedContext) -> CompressedContext:
    """The context, then the slots."""
    return dataclasses.replace(
        slots,
        x_BxXxD=jnp.concatenate([context.x_BxXxD, slots.x_BxXxD], axis=1),
        valid_BxX=jnp.concatenate([context.valid_BxX, slots.valid_BxX], axis=1),
        cut_BxX=jnp.concatenate([context.valid_BxX, slots.cut_BxX], axis=1),
        position_BxX=jnp.concatenate([context.position_BxX, slots.position_BxX], axis=1),
    )


def _inside(context: CompressedContext, slots: CompressedContext) -> CompressedContext:
    """The context, each slot in the place of its window's last token."""
    C, M = context.size, slots.size
    ends_BxM = window_ends(context.length_B, slots.slots_B, M)
    used_BxM = lengths_to_valid(slots.slots_B, M)
    ends_BxMxC = (jnp.arange(C) == ends_BxM[:, :, None]) & used_BxM[:, :, None]
    is_slot_BxC = jnp.any(ends_BxMxC, axis=1)
    # A product with a one-hot matrix: its gradient is a product too, not a scatter.
    placed_BxCxD = jnp.einsum("bmc,bmd->bcd", ends_BxMxC.astype(slots.x_BxXxD.dtype), slots.x_BxXxD)
    return dataclasses.replace(
        context,
        x_BxXxD=jnp.where(is_slot_BxC[:, :, None], placed_BxCxD, context.x_BxXxD),
        cut_BxX=context.valid_BxX & ~is_slot_BxC,
        slots_B=slots.slots_B,
    )
