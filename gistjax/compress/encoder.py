"""The encoder: from context tokens to the states that an architecture reads."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.config import CompressionConfig, EncoderConfig
from gistjax.errors import ConfigError
from gistjax.model.config import LlamaConfig
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA
from gistjax.model.masks import Bidirectional, lengths_to_valid

POOLED = ("conv", "pooling")
"""Scorers that read states, which may be pooled; others read keys."""


class Encoder(nnx.Module):
    """Context tokens to states `[B, C, D]`, through a base with an adapter or without.

    With `config.pool` the last layers see ever fewer positions, and there are `positions` states.

    Args:
        base: sizes of the base that it runs.
        embeds: give the base's embeddings whatever `config.kind` says. Where slots are kept as keys
            and values, the pass that makes those is the encoder: its LoRA goes there.
    """

    def __init__(self, base: LlamaConfig, config: EncoderConfig, embeds: bool, key: Array):
        self.kind = "embeddings" if embeds else config.kind
        self.bidirectional = config.bidirectional
        self.pool = 0 if self.kind == "embeddings" else config.pool
        self.n_layers = base.n_layers if config.layers < 0 else config.layers
        self.lora = LoRA(base, config.lora, key, self.n_layers) if config.kind == "lora" else None

    def __call__(self, base: Llama, ids_BxC: Array, length_B: Array) -> Array:
        x_BxCxD = base.embed(ids_BxC)
        if self.kind == "embeddings":
            return x_BxCxD
        plain = self.n_layers - self.pool
        states_BxCxD = self._run(base, x_BxCxD, length_B, 0, plain, 1)
        for level in range(1, self.pool + 1):
            states_BxCxD = pool(states_BxCxD, length_B)
            length_B = pooled_length(length_B)
            last = plain + level
            states_BxCxD = self._run(base, states_BxCxD, length_B, last - 1, last, 2**level)
        return states_BxCxD

    def positions(self, length_B: Array) -> Array:
        """Real states of contexts of so many tokens, `[B]`."""
        for _ in range(self.pool):
            length_B = pooled_length(length_B)
        return length_B

    def of_tokens(self, weights_BxMxC: Array, length_B: Array, C: int) -> Array:
        """Weights of states as weights of tokens, `[B, M, C]`: a mean's parts are alike."""
        if not self.pool:
            return weights_BxMxC
        share_BxCxC = jnp.broadcast_to(jnp.eye(C), (len(length_B), C, C))
        for _ in range(self.pool):
            share_BxCxC, length_B = pool(share_BxCxC, length_B), pooled_length(length_B)
        return weights_BxMxC @ share_BxCxC

    def _run(
        self, base: Llama, x_BxCxD: Array, length_B: Array, first: int, end: int, stride: int
    ) -> Array:
        """Run some of the layers; a position stands in the middle of the tokens that it pools."""
        if first == end and self.pool:
            return x_BxCxD
        place_C = jnp.arange(x_BxCxD.shape[1])
        place_C = place_C if stride == 1 else stride * place_C + (stride - 1) / 2
        # Causal by default: padding stands last, where nobody sees it.
        mask = Bidirectional(length_B) if self.bidirectional else None
        states_BxCxD, _ = base(x_BxCxD, place_C[None], mask, self.lora, n_layers=range(first, end))
        return states_BxCxD


def pooled_length(length_B: Array) -> Array:
    """Positions that `pool` leaves of so many."""
    return (length_B + 1) // 2


def pool(x_BxCxD: Array, length_B: Array) -> Array:
    """Means of two positions each, the real ones among them, `[B, ⌈C / 2⌉, D]`."""
    B, C, D = x_BxCxD.shape
    real_BxC = jnp.pad(lengths_to_valid(length_B, C), ((0, 0), (0, C % 2)))
    real = real_BxC.reshape(B, -1, 2, 1)
    pairs = jnp.pad(x_BxCxD, ((0, 0), (0, C % 2), (0, 0))).reshape(B, -1, 2, D)
    number = jnp.maximum(real.sum(axis=2), 1).astype(x_BxCxD.dtype)
    return jnp.sum(jnp.where(real, pairs, 0), axis=2) / number


def check_pooling(config: CompressionConfig, base: LlamaConfig) -> None:
    """Refuse an encoder that could not pool as it is told to.

    Raises:
        ConfigError: saying what to change.
    """
    encoder, key = config.encoder, f"encoder.pool={config.encoder.pool}"
    if not encoder.pool:
        return
    layers = base.n_layers if encoder.layers < 0 else encoder.layers
    if encoder.pool > layers:
        raise ConfigError(f"{key} is more than the {layers} layers that are run: lower it.")
    if config.selects:
        if config.select.scorer not in POOLED:
            raise ConfigError(
                f"{key} pools the states that a scorer reads, and select.scorer="
                f"{config.select.scorer!r} reads none: give one of {POOLED}, or encoder.pool=0."
            )
        return
    if not config.compresses or config.slot_form != "soft_tokens" or encoder.kind == "embeddings":
        raise ConfigError(
            f"{key} needs layers that make states for slots: set slot_form='soft_tokens' and "
            "encoder.kind='lora' or 'hidden', or encoder.pool=0."
        )
    ratio = min(config.ratios or (config.ratio,)) or config.data.context_tokens / (
        config.target_length
    )
    if 2**encoder.pool > ratio:
        raise ConfigError(
            f"{key} leaves a state for {2**encoder.pool} tokens, and there is to be a slot for "
            f"{ratio:g}: lower encoder.pool, or raise the least ratio."
        )
