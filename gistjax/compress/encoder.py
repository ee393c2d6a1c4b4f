"""The encoder: from context tokens to the states that an architecture reads."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.config import EncoderConfig
from gistjax.model.config import LlamaConfig
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA
from gistjax.model.masks import Bidirectional


class Encoder(nnx.Module):
    """Context tokens to states `[B, C, D]`, through a base with an adapter or without.

    Args:
        base: sizes of the base that it runs.
        embeds: give the base's embeddings whatever `config.kind` says. Where slots are kept as keys
            and values, the pass that makes those is the encoder: its LoRA goes there.
    """

    def __init__(self, base: LlamaConfig, config: EncoderConfig, embeds: bool, key: Array):
        self.kind = "embeddings" if embeds else config.kind
        self.bidirectional = config.bidirectional
        self.n_layers = base.n_layers if config.layers < 0 else config.layers
        self.lora = LoRA(base, config.lora, key, self.n_layers) if config.kind == "lora" else None

    def __call__(self, base: Llama, ids_BxC: Array, length_B: Array) -> Array:
        x_BxCxD = base.embed(ids_BxC)
        if self.kind == "embeddings":
            return x_BxCxD
        C = ids_BxC.shape[1]
        # Causal by default: padding stands last, where nobody sees it.
        mask = Bidirectional(length_B) if self.bidirectional else None
        states_BxCxD, _ = base(
            x_BxCxD, jnp.arange(C)[None], mask, self.lora, n_layers=self.n_layers
        )
        return states_BxCxD
