"""From context tokens to slots, and from slots to the decoder's states.

    context ids ── encoder ── head ── connector ──▶ Memory ──▶ prefix · memory · question · answer ──▶ decoder

A `Memory` is whatever the decoder reads in place of the context: slots as soft tokens, slots as keys and values, the
whole context (architecture `none`) or nothing (`closed_book`). All of them go through the same code.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.architectures import HEADS, window_ends
from gistjax.compress.compressor import Compressor
from gistjax.compress.context import CompressedContext, DecodeState, Sequence, soft_context
from gistjax.config import CompressionConfig
from gistjax.model.kv_cache import Cache
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA
from gistjax.model.masks import gist_mask, lengths_to_valid


class CompressedLM(nnx.Module):
    """A frozen base, the decoder's LoRA, and the compressor in front of them.

    base         Llama        Frozen
    lora         LoRA         trainable, or None
    compressor   Compressor   trainable (but its `embedding_rms`), or None for the uncompressed controls
    """

    def __init__(
        self, base: Llama, config: CompressionConfig, prefix_ids: tuple[int, ...], key: Array
    ):
        key_l, key_c = jax.random.split(key)
        self.base = base
        self.architecture = config.architecture
        self.slot_form = config.slot_form
        self.inside = config.slot_place == "inside"
        self.spread = config.slot_positions == "spread"
        self.prefix_ids = tuple(prefix_ids)
        self.lora = LoRA(base.config, config.lora, key_l) if config.lora.rank else None
        compresses = config.architecture in HEADS
        self.compressor = Compressor(base.config, config, key_c) if compresses else None

    def memory(
        self, ids_BxC: Array, length_B: Array, ratio_B: Array | None = None
    ) -> CompressedContext:
        """The memory as soft tokens in the decoder's sequence.

        With `slot_form = key_values` the context stays in the sequence, before the slots or around them, and is cut off
        after them: the plain form of what `compress` does.

        Args:
            ratio_B: context tokens a slot in each row; by default the configured ratio.
        """
        if self.compressor is None:
            if self.architecture == "closed_book":
                ids_BxC, length_B = ids_BxC[:, :0], jnp.zeros_like(length_B)
            return soft_context(self.base.embed(ids_BxC), length_B)
        slots_BxMxD, slots_B = self.compressor(self.base, ids_BxC, length_B, ratio_B)
        if self._cuts and self.inside:
            return self._slots_inside(ids_BxC, length_B, slots_BxMxD, slots_B)
        slots = soft_context(slots_BxMxD, slots_B)
        if self.spread:
            places_BxM = self.compressor.positions(length_B, slots_B, slots_BxMxD.shape[1])
            slots = slots.replace(position_BxX=places_BxM, length_B=length_B)  # type: ignore[attr-defined]
        elif self._cuts:
            slots = slots.replace(  # type: ignore[attr-defined]
                position_BxX=slots.position_BxX + length_B[:, None], length_B=length_B + slots_B
            )
        return self._slots_behind(ids_BxC, length_B, slots) if self._cuts else slots

    def _slots_behind(
        self, ids_BxC: Array, length_B: Array, slots: CompressedContext
    ) -> CompressedContext:
        """The context, then the slots."""
        context = soft_context(self.base.embed(ids_BxC), length_B)
        return slots.replace(  # type: ignore[attr-defined, no-any-return]
            x_BxXxD=jnp.concatenate([context.x_BxXxD, slots.x_BxXxD], axis=1),
            valid_BxX=jnp.concatenate([context.valid_BxX, slots.valid_BxX], axis=1),
            cut_BxX=jnp.concatenate([context.valid_BxX, slots.cut_BxX], axis=1),
            position_BxX=jnp.concatenate([context.position_BxX, slots.position_BxX], axis=1),
        )

    def _slots_inside(
        self, ids_BxC: Array, length_B: Array, slots_BxMxD: Array, slots_B: Array
    ) -> CompressedContext:
        """The context, each slot in the place of its window's last token."""
        context = soft_context(self.base.embed(ids_BxC), length_B)
        ends_BxMxC = _one_hot_ends(length_B, slots_B, slots_BxMxD.shape[1], ids_BxC.shape[1])
        is_slot_BxC = jnp.any(ends_BxMxC, axis=1)
        placed_BxCxD = jnp.einsum("bmc,bmd->bcd", ends_BxMxC.astype(slots_BxMxD.dtype), slots_BxMxD)
        return context.replace(  # type: ignore[attr-defined, no-any-return]
            x_BxXxD=jnp.where(is_slot_BxC[:, :, None], placed_BxCxD, context.x_BxXxD),
            cut_BxX=context.valid_BxX & ~is_slot_BxC,
            slots_B=slots_B,
        )

    def compress(
        self, ids_BxC: Array, length_B: Array, ratio_B: Array | None = None
    ) -> CompressedContext:
        """The memory in the form that is trained and kept: M soft tokens, or M keys and values a layer.

        Answers from it equal those from `memory`; the context is not needed any more. Up to the slots the gist mask
        hides nothing, so that one causal pass makes their keys and values.
        """
        memory = self.memory(ids_BxC, length_B, ratio_B)
        if not self._cuts:
            return memory
        assert self.compressor is not None
        sequence = self._sequence(memory).compact()
        B, T = sequence.valid_BxT.shape
        _, cache = self.base(
            sequence.x_BxTxD,
            self._positions(sequence),
            lora=self.compressor.encoder.lora or self.lora,
            cache=self.base.empty_cache(B, T),
            logit_positions_BxW=jnp.zeros(
                (B, 1), jnp.int32
            ),  # of the last layer only keys and values count
        )
        assert cache is not None
        P, C = len(self.prefix_ids), ids_BxC.shape[1]
        if self.inside:
            M = self.compressor.n_slots(C, ratio_B)
            ends_BxM = window_ends(length_B, memory.slots_B, M)
            kept: Any = memory.take(ends_BxM)
            return kept.replace(kv=cache.take(P + ends_BxM))  # type: ignore[no-any-return]
        M = memory.size - C
        places_BxM = jnp.minimum(P + length_B[:, None] + jnp.arange(M), T - 1)
        slots = jax.tree.map(lambda x: x if x.ndim < 2 else x[:, C:], memory)
        return slots.replace(kv=cache.take(places_BxM))  # type: ignore[no-any-return]

    def states(
        self,
        memory: CompressedContext,
        tokens_BxS: Array,
        length_B: Array,
        logit_positions_BxW: Array | None = None,
    ) -> Array:
        """The decoder's states over the tokens that follow the memory, in one pass.

        Args:
            wanted_BxW: of which tokens, by number; by default of all S.

        Returns:
            `[B, W, D]`.
        """
        if memory.kv is not None:
            if logit_positions_BxW is None:
                shape = tokens_BxS.shape
                logit_positions_BxW = jnp.broadcast_to(jnp.arange(shape[1]), shape)
            return self.read(memory, tokens_BxS, length_B, 0, logit_positions_BxW)[0]
        sequence = self._sequence(memory, tokens_BxS, length_B).compact()
        h_BxWxD, _ = self.base(
            sequence.x_BxTxD,
            self._positions(sequence),
            self._mask(sequence),
            self.lora,
            logit_positions_BxW=self._places(memory, tokens_BxS, logit_positions_BxW),
        )
        return h_BxWxD

    def read(
        self,
        memory: CompressedContext,
        tokens_BxS: Array,
        length_B: Array,
        room: int,
        logit_positions_BxW: Array,
        seen_B: Array | None = None,
    ) -> tuple[Array, DecodeState]:
        """As `states`, keeping keys and values with `room` for more tokens.

        Those follow the row's first `seen` tokens, by default all, and see no others.
        """
        S = tokens_BxS.shape[1]
        seen_B = length_B if seen_B is None else seen_B
        if memory.kv is not None:
            return self.ask(tokens_BxS, self.prefill(memory, S + room), logit_positions_BxW, seen_B)
        sequence = self._sequence(memory, tokens_BxS, length_B).compact()
        B, T = sequence.valid_BxT.shape
        mask_BxTxT = self._mask(sequence)
        h_BxWxD, cache = self.base(
            sequence.x_BxTxD,
            self._positions(sequence),
            None if mask_BxTxT is None else jnp.pad(mask_BxTxT, ((0, 0), (0, 0), (0, room))),
            self.lora,
            self.base.empty_cache(B, T + room),
            logit_positions_BxW=self._places(memory, tokens_BxS, logit_positions_BxW),
        )
        assert cache is not None
        end_B = self._first_place(memory) + seen_B
        visible_BxT = sequence.valid_BxT & ~sequence.cut_BxT & (jnp.arange(T) < end_B[:, None])
        visible_BxU = jnp.pad(visible_BxT, ((0, 0), (0, room)))
        return h_BxWxD, DecodeState(cache, visible_BxU, self._first_token(memory) + seen_B, T)

    def prefill(self, memory: CompressedContext, room: int) -> DecodeState:
        """Reads prefix and memory, as `compress` gives it, once for all that is asked about it.

        Args:
            room: for how many tokens.
        """
        B, X = memory.valid_BxX.shape
        P, size = len(self.prefix_ids), len(self.prefix_ids) + X + room
        visible_BxX = memory.valid_BxX & ~memory.cut_BxX
        visible_BxU = jnp.pad(
            jnp.pad(visible_BxX, ((0, 0), (P, 0)), constant_values=True), ((0, 0), (0, room))
        )
        cache: Cache | None
        if memory.kv is not None:
            cache = self._around(memory.kv, size)
        else:  # causal: unused slots stand last, where no other slot sees them
            sequence = self._sequence(memory)
            _, cache = self.base(
                sequence.x_BxTxD,
                sequence.position_BxT,
                lora=self.lora,
                cache=self.base.empty_cache(B, size),
                logit_positions_BxW=jnp.zeros((B, 1), jnp.int32),
            )
        assert cache is not None
        return DecodeState(cache, visible_BxU, self._first_token(memory), P + X)

    def ask(
        self, tokens_BxS: Array, reading: DecodeState, logit_positions_BxW: Array, seen_B: Array
    ) -> tuple[Array, DecodeState]:
        """Tokens behind what was read, right padded: states `[B, W, D]` of those wanted, and the new reading.

        What follows comes behind the row's first `seen` tokens, and sees no others.
        """
        S, U = tokens_BxS.shape[1], reading.visible_BxU.shape[1]
        h_BxWxD, new = self.extend(tokens_BxS, reading, 0, logit_positions_BxW)
        number_U = jnp.arange(U) - reading.first_free
        own_BxU = (number_U >= 0) & (number_U < seen_B[:, None])
        return h_BxWxD, DecodeState(
            new.cache, reading.visible_BxU | own_BxU, reading.position_B + seen_B, reading.first_free + S
        )  # fmt: skip

    def extend(
        self,
        ids_BxA: Array,
        reading: DecodeState,
        done: Array | int,
        logit_positions_BxW: Array | None = None,
    ) -> tuple[Array, DecodeState]:
        """A more tokens a row after the `done` ones that were added already: states `[B, A, D]`, or `[B, W, D]` of those
        wanted, and the new reading.
        """
        A, U = ids_BxA.shape[1], reading.visible_BxU.shape[1]
        index = reading.first_free + done
        own_AxU = jnp.arange(U) - index <= jnp.arange(A)[:, None]
        own_AxU &= jnp.arange(U) >= index
        positions_BxA = reading.position_B[:, None] + done + jnp.arange(A)
        h_BxAxD, cache = self.base(
            self.base.embed(ids_BxA),
            positions_BxA,
            reading.visible_BxU[:, None] | own_AxU,
            self.lora,
            reading.cache,
            index,
            logit_positions_BxW=logit_positions_BxW,
        )
        visible_BxU = reading.visible_BxU | own_AxU[-1]
        return h_BxAxD, reading.replace(cache=cache, visible_BxU=visible_BxU)  # type: ignore[attr-defined]

    def decode(self, ids_B: Array, reading: DecodeState, done: Array) -> tuple[Array, DecodeState]:
        """One more token a row: states `[B, D]`, and the new reading."""
        h_Bx1xD, reading = self.extend(ids_B[:, None], reading, done)
        return h_Bx1xD[:, 0], reading

    @property
    def _cuts(self) -> bool:
        """Whether the context stands in the decoder's sequence and is hidden after the slots."""
        return self.compressor is not None and self.slot_form == "key_values"

    def _first_token(self, memory: CompressedContext) -> Array:
        """The rotary position of the first token after the memory, `[B]`."""
        return len(self.prefix_ids) + memory.length_B

    def _first_place(self, memory: CompressedContext) -> Array:
        """Its place in the compact sequence."""
        return len(self.prefix_ids) + jnp.sum(memory.valid_BxX, axis=1)

    def _places(
        self, memory: CompressedContext, tokens_BxS: Array, logit_positions_BxW: Array | None
    ) -> Array:
        """Where tokens, given by number, stand in the compact sequence; past its end, its last position."""
        if logit_positions_BxW is None:
            logit_positions_BxW = jnp.arange(tokens_BxS.shape[1])[None]
        last = len(self.prefix_ids) + memory.size + tokens_BxS.shape[1] - 1
        return jnp.minimum(self._first_place(memory)[:, None] + logit_positions_BxW, last)

    def _sequence(
        self,
        memory: CompressedContext,
        tokens_BxS: Array | None = None,
        length_B: Array | None = None,
    ) -> Sequence:
        """prefix · memory · tokens. Where slots are kept as keys and values, what went in only holds their place."""
        B, X = memory.valid_BxX.shape
        D, P = self.base.config.d_model, len(self.prefix_ids)
        prefix_PxD = self.base.embed(jnp.asarray(self.prefix_ids, jnp.int32))
        real_BxP, nobody_BxX = jnp.ones((B, P), bool), jnp.zeros((B, X), bool)
        place_BxP = jnp.broadcast_to(jnp.arange(P, dtype=jnp.float32), (B, P))
        parts = [
            Sequence(
                jnp.broadcast_to(prefix_PxD, (B, P, D)), real_BxP, ~real_BxP, ~real_BxP, place_BxP
            ),
            Sequence(
                memory.x_BxXxD, memory.valid_BxX, memory.cut_BxX, nobody_BxX,
                P + memory.position_BxX.astype(jnp.float32),
            ),
        ]  # fmt: skip
        if tokens_BxS is not None and length_B is not None:
            S = tokens_BxS.shape[1]
            valid_BxS = lengths_to_valid(length_B, S)
            nobody_BxS = jnp.zeros_like(valid_BxS)
            place_BxS = (self._first_token(memory)[:, None] + jnp.arange(S)).astype(jnp.float32)
            x_BxSxD = self.base.embed(tokens_BxS)
            parts.append(Sequence(x_BxSxD, valid_BxS, nobody_BxS, ~nobody_BxS, place_BxS))
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)

    def _positions(self, sequence: Sequence) -> Array:
        """Rotary positions of a compact sequence; the same in every row but where slots are spread."""
        if self.spread:
            return sequence.position_BxT
        return jnp.arange(sequence.valid_BxT.shape[1])[None]

    def _mask(self, sequence: Sequence) -> Array | None:
        """None where causality alone is right: nothing is cut, and padding stands last."""
        if not self._cuts:
            return None
        return gist_mask(sequence.valid_BxT, sequence.cut_BxT, sequence.after_BxT)

    def _around(self, kv: Cache, size: int) -> Cache:
        """The prefix, the same in every row, and behind it what is there already, in a cache of `size` positions."""
        B, P = jax.tree.leaves(kv.k)[0].shape[-4], len(self.prefix_ids)
        cache = self.base.empty_cache(B, size)
        if P:
            prefix_PxD = self.base.embed(jnp.asarray(self.prefix_ids, jnp.int32))
            _, prefix = self.base(
                prefix_PxD[None], jnp.arange(P)[None], lora=self.lora,
                cache=self.base.empty_cache(1, P), logit_positions_BxW=jnp.zeros((1, 1), jnp.int32),
            )  # fmt: skip
            assert prefix is not None
            cache = cache.insert(0, prefix.repeat(B))
        return cache.insert(P, kv)


def _one_hot_ends(length_B: Array, slots_B: Array, M: int, C: int) -> Array:
    """`[B, M, C]`: True where token c is the last of used slot m's window."""
    ends_BxM = window_ends(length_B, slots_B, M)
    return (jnp.arange(C) == ends_BxM[:, :, None]) & lengths_to_valid(slots_B, M)[:, :, None]


def answer_positions(question_length_B: Array, n: int, size: int) -> Array:
    """The numbers of the tokens whose states predict the first n answer tokens, `[B, n]`, of `size` tokens.

    Answer token a stands at `question_length + a`; the state before it predicts it.
    """
    return jnp.minimum(question_length_B[:, None] - 1 + jnp.arange(n), size - 1)
