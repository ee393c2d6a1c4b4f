"""From context tokens to slots: encoder, head, connector."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.architectures import (
    HEADS,
    matrix,
    rms_norm,
    standardize,
    window_centres,
    window_ends,
    window_means,
)
from gistjax.config import CompressionConfig, EncoderConfig
from gistjax.model.config import LlamaConfig
from gistjax.model.llama import Frozen, Llama, take_positions
from gistjax.model.lora import LoRA
from gistjax.model.masks import bidirectional_mask, lengths_to_valid


class Encoder(nnx.Module):
    """Context tokens to the states that a head reads, `[B, C, D]`.

    Where slots are kept as keys and values, the pass that makes them is the encoder: its LoRA goes there, and the head
    reads the embeddings.
    """

    def __init__(self, base: LlamaConfig, config: EncoderConfig, slot_form: str, key: Array):
        self.kind = "embeddings" if slot_form == "key_values" else config.kind
        self.bidirectional = config.bidirectional
        self.n_layers = base.n_layers if config.layers < 0 else config.layers
        self.lora = LoRA(base, config.lora, key, self.n_layers) if config.kind == "lora" else None

    def __call__(self, base: Llama, ids_BxC: Array, length_B: Array) -> Array:
        x_BxCxD = base.embed(ids_BxC)
        if self.kind == "embeddings":
            return x_BxCxD
        C = ids_BxC.shape[1]
        mask_BxCxC = None  # causal: padding stands last, where nobody sees it
        if self.bidirectional:
            mask_BxCxC = bidirectional_mask(lengths_to_valid(length_B, C))
        states_BxCxD, _ = base(
            x_BxCxD, jnp.arange(C)[None], mask_BxCxC, self.lora, n_layers=self.n_layers
        )
        return states_BxCxD


class Connector(nnx.Module):
    """Makes slots look like token embeddings: an optional D×D projection, then RMS matching."""

    def __init__(self, base: LlamaConfig, kind: str, key: Array):
        self.kind = kind
        self.projection = matrix(key, base.d_model, base.d_model) if kind == "linear" else None
        self.embedding_rms = Frozen(jnp.ones((), jnp.float32))  # of the base's table, once loaded

    def __call__(self, slots_BxMxD: Array) -> Array:
        if self.kind == "none":
            return slots_BxMxD
        dtype = slots_BxMxD.dtype
        if self.projection is not None:
            slots_BxMxD = slots_BxMxD @ self.projection[...].astype(dtype)
        return rms_norm(slots_BxMxD, self.embedding_rms[...].astype(dtype), 1e-12)


class Compressor(nnx.Module):
    """Encoder, head and connector."""

    def __init__(self, base: LlamaConfig, config: CompressionConfig, key: Array):
        key_e, key_h, key_c = jax.random.split(key, 3)
        self.M, self.ratio = config.target_length, config.ratio
        self.least_ratio = min(config.ratios, default=config.ratio)
        ratio = int(self.least_ratio) or max(config.data.context_tokens // self.M, 1)
        self.encoder = Encoder(base, config.encoder, config.slot_form, key_e)
        self.head = HEADS[config.architecture](base, self.M, ratio, key_h)
        self.connector = Connector(base, config.connector, key_c)
        self.start = config.slot_start
        self.gate = None if self.start == "head" else nnx.Param(jnp.zeros(base.d_model))

    def n_slots(self, C: int, ratio_B: Array | None = None) -> int:
        """Slots that contexts of up to C tokens need, at most M; room for the least ratio where each row has its own."""
        ratio = self.ratio if ratio_B is None else self.least_ratio
        return min(math.ceil(C / (ratio or 1)), self.M)

    def slots_used(self, length_B: Array, ratio_B: Array | None = None) -> Array:
        """⌈tokens / ratio⌉ of each row, at most M."""
        ratio = (self.ratio or 1) if ratio_B is None else ratio_B
        if ratio_B is None and ratio == int(ratio):
            used_B = -(-length_B // int(ratio))  # XLA divides by a constant inexactly
        else:
            used_B = jnp.ceil(length_B / ratio).astype(jnp.int32)
        return jnp.minimum(used_B, self.M)

    def __call__(
        self, base: Llama, ids_BxC: Array, length_B: Array, ratio_B: Array | None = None
    ) -> tuple[Array, Array]:
        """Slots `[B, M, D]` in the base's dtype, and how many of them each row uses.

        Args:
            ratio_B: context tokens a slot, one of `config.ratios` each; by default `config.ratio` for all, and where
                that is 0, M slots or one a token.
        """
        M, slots_B = self.n_slots(ids_BxC.shape[1], ratio_B), self.slots_used(length_B, ratio_B)
        states_BxCxD = self.encoder(base, ids_BxC, length_B)
        slots_BxMxD = self.head(states_BxCxD, length_B, slots_B, M)
        if self.gate is not None:
            slots_BxMxD = self._from_tokens(slots_BxMxD, base.embed(ids_BxC), length_B, slots_B)
        return self.connector(slots_BxMxD), slots_B

    def weights(self, base: Llama, ids_BxC: Array, length_B: Array) -> tuple[Array, Array]:
        """What part each token's state has in each slot, as the head says it, `[B, M, C]`; and the slots used."""
        M, slots_B = self.n_slots(ids_BxC.shape[1]), self.slots_used(length_B)
        states_BxCxD = self.encoder(base, ids_BxC, length_B)
        return self.head.weights(states_BxCxD, length_B, slots_B, M), slots_B

    def _from_tokens(
        self, slots_BxMxD: Array, x_BxCxD: Array, length_B: Array, slots_B: Array
    ) -> Array:
        """What the head found, added to each window's mean or last embedding behind a gate that starts at zero
        (ReZero, arXiv:2003.04887): with a slot a token, training starts at the uncompressed model.
        """
        assert self.gate is not None
        M = slots_BxMxD.shape[1]
        if self.start == "window_means":
            start_BxMxD = window_means(x_BxCxD, length_B, slots_B, M)
        else:
            start_BxMxD = take_positions(x_BxCxD, window_ends(length_B, slots_B, M))
        size = self.gate[...] * self.connector.embedding_rms[...]
        return start_BxMxD + size.astype(x_BxCxD.dtype) * standardize(slots_BxMxD)

    def positions(self, length_B: Array, slots_B: Array, M: int) -> Array:
        """Where slots stand that are spread over the context's positions: at the end of their window if they start from
        there, else in its middle (Zhao et al. 2024, arXiv:2409.14364, spread them evenly).
        """
        if self.start == "window_ends":
            return window_ends(length_B, slots_B, M)
        return window_centres(length_B, slots_B, M)
