"""From context tokens to slots: encoder, architecture, connector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.architectures import find_architecture
from gistjax.compress.budget import Budget
from gistjax.compress.connector import Connector
from gistjax.compress.encoder import Encoder
from gistjax.compress.layers import standardize
from gistjax.compress.windows import window_centres, window_ends, window_means
from gistjax.config import CompressionConfig
from gistjax.model.config import LlamaConfig
from gistjax.model.layer import take_positions
from gistjax.model.llama import Llama


class Compressor(nnx.Module):
    """Encoder, architecture and connector.

    Args:
        base: sizes of the decoder's base.
        encoder_base: sizes of the encoder's base, of the same width.
    """

    def __init__(
        self, base: LlamaConfig, encoder_base: LlamaConfig, config: CompressionConfig, key: Array
    ):
        key_e, key_a, key_c = jax.random.split(key, 3)
        self.budget = Budget.of(config)
        M = self.budget.most
        ratio = int(self.budget.least_ratio) or max(config.data.context_tokens // M, 1)
        ratio = max(ratio >> config.encoder.pool, 1)  # states a slot
        embeds = config.slot_form == "key_values"
        self.encoder = Encoder(encoder_base, config.encoder, embeds, key_e)
        self.architecture = find_architecture(config.architecture)(base, M, ratio, key_a)
        self.connector = Connector(base, config.connector, key_c)
        self.start = config.slot_start
        gated = self.start != "architecture"
        self.gate = nnx.Param(jnp.zeros(base.d_model)) if gated else None

    def __call__(
        self,
        base: Llama,
        encoder_base: Llama,
        ids_BxC: Array,
        length_B: Array,
        ratio: Array | float | None = None,
    ) -> tuple[Array, Array]:
        """Slots `[B, M, D]` in the base's dtype, and how many of them each row uses.

        Args:
            base: the decoder's.
            ratio: context tokens a slot: one for all, by default the configured one, or an array
                `[B]` of one of `config.ratios` each. Where it is 0, M slots or one a token.
        """
        M, slots_B = self.count(ids_BxC.shape[1], length_B, ratio)
        states_BxCxD = self.encoder(encoder_base, ids_BxC, length_B)
        real_B = self.encoder.positions(length_B)
        slots_BxMxD = self.architecture(states_BxCxD, real_B, slots_B, M)
        if self.gate is not None:
            slots_BxMxD = self._from_tokens(slots_BxMxD, base.embed(ids_BxC), length_B, slots_B)
        return self.connector(slots_BxMxD), slots_B

    def count(
        self, C: int, length_B: Array, ratio: Array | float | None = None
    ) -> tuple[int, Array]:
        """Slots that there is room for, M, and those that each row uses `[B]`."""
        if isinstance(ratio, float | int):
            budget = self.budget.at(ratio)
            return budget.room(C), budget.slots(length_B)
        return self.budget.room(C, ratio is not None), self.budget.slots(length_B, ratio)

    def weights(
        self, encoder_base: Llama, ids_BxC: Array, length_B: Array
    ) -> tuple[Array, Array] | None:
        """The part of each token's state in each slot `[B, M, C]`, and the slots used.

        None where the architecture does not tell.
        """
        weights = getattr(self.architecture, "weights", None)
        if weights is None:
            return None
        M, slots_B = self.count(ids_BxC.shape[1], length_B)
        states_BxCxD = self.encoder(encoder_base, ids_BxC, length_B)
        weights_BxMxC = weights(states_BxCxD, self.encoder.positions(length_B), slots_B, M)
        return self.encoder.of_tokens(weights_BxMxC, length_B, ids_BxC.shape[1]), slots_B

    def _from_tokens(
        self, slots_BxMxD: Array, x_BxCxD: Array, length_B: Array, slots_B: Array
    ) -> Array:
        """Add the architecture's slots to each window's mean or last embedding.

        The gate starts at zero (ReZero, arXiv:2003.04887): with a slot a token, training starts at
        the uncompressed model.
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
        """Positions of slots that are spread over the context's.

        Each is at the end of its window if it starts from there, else in its middle (Zhao et al.
        2024, arXiv:2409.14364, spread them evenly).
        """
        if self.start == "window_ends":
            return window_ends(length_B, slots_B, M)
        return window_centres(length_B, slots_B, M)
