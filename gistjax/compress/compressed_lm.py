"""From context tokens to slots, and from slots to the decoder's states.

    context ids ── encoder ── architecture ── connector ──▶ CompressedContext
    prefix · compressed context · question · answer ──▶ decoder

A `CompressedContext` is whatever the decoder reads in place of the context: slots as soft tokens,
slots as keys and values, entries kept of the cache (`select`), the whole context (`none`) or
nothing (`closed_book`). All of them go through the same code.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.compressor import Compressor
from gistjax.compress.context import CompressedContext, DecodeState, soft_context
from gistjax.compress.key_values import KeyValues, prefix_cache
from gistjax.compress.select import Asked, Selector
from gistjax.compress.sequence import first_place, first_position, make_sequence, places_of
from gistjax.compress.soft_tokens import Form, SoftTokens
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.model.kv_cache import Cache
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA


class CompressedLM(nnx.Module):
    """A frozen decoder, its LoRA, and the compressor in front of it.

    base           Llama        Frozen
    encoder_base   Llama        Frozen, or None where the encoder runs on `base`
    lora           LoRA         trainable, or None
    compressor     Compressor   trainable (but its `embedding_rms`), or None for the controls
    selector       Selector     in place of the compressor where entries are kept

    Args:
        encoder_base: another base for the encoder, of the same width and vocabulary.

    Raises:
        ConfigError: if the bases or the architecture do not go with the form of the slots.
    """

    def __init__(
        self,
        base: Llama,
        config: CompressionConfig,
        key: Array,
        encoder_base: Llama | None = None,
    ):
        key_l, key_c = jax.random.split(key)
        self.base, self.encoder_base = base, encoder_base
        self.reads_context = config.architecture != "closed_book"
        self.form = make_form(config)
        self.lora = LoRA(base.config, config.lora, key_l) if config.lora.rank else None
        encoder_config = base.config if encoder_base is None else encoder_base.config
        if encoder_config.d_model != base.config.d_model or (
            encoder_base is not None and config.slot_form == "key_values"
        ):
            raise ConfigError(
                "an encoder's base must be as wide as the decoder's, and the same where slots are "
                "kept as keys and values: set slot_form='soft_tokens'."
            )
        self.compressor = (
            Compressor(base.config, encoder_config, config, key_c)
            if config.compresses and not config.selects
            else None
        )
        self.selector = Selector(base.config, config, key_c) if config.selects else None

    def in_sequence(
        self,
        prefix_ids_P: Array,
        ids_BxC: Array,
        length_B: Array,
        ratio: Array | float | None = None,
    ) -> CompressedContext:
        """The compressed context as soft tokens in the decoder's sequence.

        With slots as keys and values the context stays in the sequence, before the slots or around
        them, and is cut off after them: the plain form of what `compress` does.

        Args:
            ratio: context tokens a slot, one for all rows or `[B]`; by default the configured one.
        """
        if self.compressor is None:
            if not self.reads_context:
                ids_BxC, length_B = ids_BxC[:, :0], jnp.zeros_like(length_B)
            return soft_context(prefix_ids_P, self.base.embed(ids_BxC), length_B)
        return self._placed(self.compressor, prefix_ids_P, ids_BxC, length_B, ratio)[0]

    def compress(
        self,
        prefix_ids_P: Array,
        ids_BxC: Array,
        length_B: Array,
        ratio: Array | float | None = None,
        asked: Asked | None = None,
    ) -> CompressedContext:
        """The compressed context in the form that is trained and kept.

        That is M soft tokens, M keys and values a layer, or as many entries spread over layers and
        KV heads. Answers from the first two equal those from `in_sequence`; the context is not
        needed any more.

        Args:
            ratio: as in `in_sequence`; context tokens an entry where entries are kept.
            asked: the question, for a scorer that looks at it.
        """
        if self.selector is not None:
            context = ids_BxC, length_B
            return self.selector(self.base, self.lora, prefix_ids_P, context, ratio, asked)
        if self.compressor is None:
            return self.in_sequence(prefix_ids_P, ids_BxC, length_B)
        placed, M = self._placed(self.compressor, prefix_ids_P, ids_BxC, length_B, ratio)
        lora = self.compressor.encoder.lora or self.lora
        return self.form.keep(self.base, lora, placed, length_B, M)

    def _placed(
        self,
        compressor: Compressor,
        prefix_ids_P: Array,
        ids_BxC: Array,
        length_B: Array,
        ratio: Array | float | None,
    ) -> tuple[CompressedContext, int]:
        """The slots in place, and how many there is room for."""
        slots_BxMxD, slots_B = compressor(self.base, self._reader, ids_BxC, length_B, ratio)
        slots = soft_context(prefix_ids_P, slots_BxMxD, slots_B)
        return self.form.place(self.base, compressor, slots, ids_BxC, length_B), slots.size

    def slot_weights(self, ids_BxC: Array, length_B: Array) -> tuple[Array, Array] | None:
        """The part of each token in each slot `[B, M, C]`, and the slots used `[B]`.

        None where the architecture does not tell, or there is none.
        """
        if self.compressor is None:
            return None
        return self.compressor.weights(self._reader, ids_BxC, length_B)

    @property
    def _reader(self) -> Llama:
        """The base that the encoder runs on."""
        return self.base if self.encoder_base is None else self.encoder_base

    def states(
        self,
        context: CompressedContext,
        tokens_BxS: Array,
        length_B: Array,
        logit_positions_BxW: Array | None = None,
    ) -> Array:
        """The decoder's states over the tokens that follow a context, in one pass.

        Args:
            logit_positions_BxW: the tokens, by number, whose states are returned; by default all S.

        Returns:
            `[B, W, D]`.
        """
        if context.in_cache:
            if logit_positions_BxW is None:
                shape = tokens_BxS.shape
                logit_positions_BxW = jnp.broadcast_to(jnp.arange(shape[1]), shape)
            return self.prefill_with(context, tokens_BxS, length_B, 0, logit_positions_BxW)[0]
        sequence = make_sequence(self.base, context, tokens_BxS, length_B).compact()
        h_BxWxD, _ = self.base(
            sequence.x_BxTxD,
            self.form.positions(sequence),
            self.form.mask(sequence),
            self.lora,
            logit_positions_BxW=places_of(context, tokens_BxS, logit_positions_BxW),
        )
        return h_BxWxD

    def prefill_with(
        self,
        context: CompressedContext,
        tokens_BxS: Array,
        length_B: Array,
        room: int,
        logit_positions_BxW: Array,
        seen_B: Array | None = None,
    ) -> tuple[Array, DecodeState]:
        """Read as `states` does, keeping keys and values with `room` for more tokens.

        Those follow the row's first `seen` tokens, by default all, and see no others.
        """
        S = tokens_BxS.shape[1]
        seen_B = length_B if seen_B is None else seen_B
        if context.in_cache:
            state = self.prefill(context, S + room)
            return self.append(tokens_BxS, state, logit_positions_BxW, seen_B)
        sequence = make_sequence(self.base, context, tokens_BxS, length_B).compact()
        B, T = sequence.valid_BxT.shape
        mask_BxTxT = self.form.mask(sequence)
        h_BxWxD, cache = self.base(
            sequence.x_BxTxD,
            self.form.positions(sequence),
            None if mask_BxTxT is None else jnp.pad(mask_BxTxT, ((0, 0), (0, 0), (0, room))),
            self.lora,
            self.base.empty_cache(B, T + room),
            logit_positions_BxW=places_of(context, tokens_BxS, logit_positions_BxW),
        )
        assert cache is not None
        end_B = first_place(context) + seen_B
        visible_BxT = sequence.valid_BxT & ~sequence.cut_BxT & (jnp.arange(T) < end_B[:, None])
        visible_BxU = jnp.pad(visible_BxT, ((0, 0), (0, room)))
        return h_BxWxD, DecodeState(cache, visible_BxU, first_position(context) + seen_B, T)

    def prefill(self, context: CompressedContext, room: int) -> DecodeState:
        """Read prefix and context, as `compress` gives it, once for all that is asked about it.

        Args:
            room: for how many tokens.
        """
        B, X = context.valid_BxX.shape
        P = context.prefix_ids_P.shape[0]
        size = P + X + room
        visible_BxX = context.valid_BxX & ~context.cut_BxX
        visible_BxU = jnp.pad(
            jnp.pad(visible_BxX, ((0, 0), (P, 0)), constant_values=True), ((0, 0), (0, room))
        )
        cache: Cache | None
        if context.in_cache:
            cache = prefix_cache(self.base, self.lora, context.prefix_ids_P, B, size)
            cache = cache if context.kv is None else cache.insert(P, context.kv)
            cache = dataclasses.replace(cache, kept=context.kept)
        else:  # causal: unused slots stand last, where no other slot sees them
            sequence = make_sequence(self.base, context)
            _, cache = self.base(
                sequence.x_BxTxD,
                sequence.position_BxT,
                lora=self.lora,
                cache=self.base.empty_cache(B, size),
                logit_positions_BxW=jnp.zeros((B, 1), jnp.int32),
            )
        assert cache is not None
        return DecodeState(cache, visible_BxU, first_position(context), P + X)

    def append(
        self, tokens_BxS: Array, state: DecodeState, logit_positions_BxW: Array, seen_B: Array
    ) -> tuple[Array, DecodeState]:
        """Read right padded tokens behind what was read: states `[B, W, D]` and the new state.

        What follows comes behind the row's first `seen` tokens, and sees no others.
        """
        S, U = tokens_BxS.shape[1], state.visible_BxU.shape[1]
        h_BxWxD, new = self.decode_step(tokens_BxS, state, 0, logit_positions_BxW)
        number_U = jnp.arange(U) - state.first_free
        own_BxU = (number_U >= 0) & (number_U < seen_B[:, None])
        return h_BxWxD, DecodeState(
            new.cache,
            state.visible_BxU | own_BxU,
            state.position_B + seen_B,
            state.first_free + S,
        )

    def decode_step(
        self,
        ids_BxT: Array,
        state: DecodeState,
        done: Array | int,
        logit_positions_BxW: Array | None = None,
    ) -> tuple[Array, DecodeState]:
        """Read T more tokens a row, after the `done` ones that were added already.

        Returns:
            States `[B, T, D]`, or `[B, W, D]` of `logit_positions_BxW`, and the new state.
        """
        T, U = ids_BxT.shape[1], state.visible_BxU.shape[1]
        index = state.first_free + done
        own_TxU = jnp.arange(U) - index <= jnp.arange(T)[:, None]
        own_TxU &= jnp.arange(U) >= index
        positions_BxT = state.position_B[:, None] + done + jnp.arange(T)
        h_BxTxD, cache = self.base(
            self.base.embed(ids_BxT),
            positions_BxT,
            state.visible_BxU[:, None] | own_TxU,
            self.lora,
            state.cache,
            index,
            logit_positions_BxW=logit_positions_BxW,
        )
        assert cache is not None
        visible_BxU = state.visible_BxU | own_TxU[-1]
        return h_BxTxD, dataclasses.replace(state, cache=cache, visible_BxU=visible_BxU)


def make_form(config: CompressionConfig) -> Form:
    """The form in which a configuration keeps its slots."""
    spread = config.slot_positions == "spread"
    if config.compresses and config.slot_form == "key_values":
        return KeyValues(spread, config.slot_place == "inside")
    return SoftTokens(spread)


def answer_positions(question_length_B: Array, n: int, size: int) -> Array:
    """The tokens whose states predict the first n answer tokens, by number `[B, n]`, of `size`.

    Answer token a stands at `question_length + a`; the state before it predicts it.
    """
    return jnp.minimum(question_length_B[:, None] - 1 + jnp.arange(n), size - 1)
