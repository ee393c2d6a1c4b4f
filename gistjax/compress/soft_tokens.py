"""The form in which slots stand in the decoder's sequence, in place of the context."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from gistjax.compress.compressor import Compressor
from gistjax.compress.context import CompressedContext
from gistjax.compress.sequence import Sequence
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA


class Form(Protocol):
    """A way in which slots become a compressed context."""

    def place(
        self,
        base: Llama,
        compressor: Compressor,
        slots: CompressedContext,
        ids_BxC: Array,
        length_B: Array,
    ) -> CompressedContext:
        """Put slots in their place in the decoder's sequence, with the context if need be."""

    def keep(
        self, base: Llama, lora: LoRA | None, placed: CompressedContext, length_B: Array, M: int
    ) -> CompressedContext:
        """Return what is kept of a context whose M slots are in place."""

    def positions(self, sequence: Sequence) -> Array:
        """Rotary positions of a compact sequence; one row may stand for all."""

    def mask(self, sequence: Sequence) -> Array | None:
        """Who may look at whom; None where causality alone is right."""


@dataclass(frozen=True)
class SoftTokens:
    """Slots are soft tokens, one behind another or spread over the context's positions."""

    spread: bool

    def place(
        self,
        base: Llama,
        compressor: Compressor,
        slots: CompressedContext,
        ids_BxC: Array,
        length_B: Array,
    ) -> CompressedContext:
        """The slots alone."""
        return spread_out(slots, compressor, length_B) if self.spread else slots

    def keep(
        self, base: Llama, lora: LoRA | None, placed: CompressedContext, length_B: Array, M: int
    ) -> CompressedContext:
        """All of it."""
        return placed

    def positions(self, sequence: Sequence) -> Array:
        """Those of the slots, or the same in every row."""
        return positions_of(sequence, self.spread)

    def mask(self, sequence: Sequence) -> None:
        """None: nothing is cut, and padding comes last."""
        return None


def spread_out(
    slots: CompressedContext, compressor: Compressor, length_B: Array
) -> CompressedContext:
    """Slots at positions spread over the context's."""
    position_BxM = compressor.positions(length_B, slots.slots_B, slots.size)
    return dataclasses.replace(slots, position_BxX=position_BxM, length_B=length_B)


def positions_of(sequence: Sequence, spread: bool) -> Array:
    """Rotary positions of a compact sequence; the same in every row but where slots are spread."""
    if spread:
        return sequence.position_BxT
    return jnp.arange(sequence.valid_BxT.shape[1])[None]
