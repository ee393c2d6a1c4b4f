"""The form of compression that keeps entries: keys and values of single KV heads of single layers.

The context is read once behind the prompt. A scorer says what each entry is worth to whoever asks
later, and a budget decides how many are kept, and where. What comes after reads the prompt and what
is kept, each KV head its own entries.

While training and scoring the others are masked; `gistjax.compress.kept` packs what is kept.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.budget import Budget
from gistjax.compress.context import CompressedContext, soft_context
from gistjax.compress.encoder import Encoder
from gistjax.compress.layers import parameter
from gistjax.compress.learned import find_scorer, kvzip_teaches, new_gists, new_weights
from gistjax.compress.scorers import Reading, Scorer
from gistjax.compress.spread import PROFILE_RATIOS, Cut, keep, keep_parts, shares_at, whole_parts
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.model.config import LlamaConfig
from gistjax.model.kv_cache import Cache, Kept, KeptLayer
from gistjax.model.layer import Seen
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA, frozen
from gistjax.model.masks import Bidirectional, causal_mask, lengths_to_valid

Asked = tuple[Array, Array]
"""Question tokens `[B, S]` and their number `[B]`."""


class Selector(nnx.Module):
    """Encoder adapter, scorer, and the parts that KV heads keep.

    Args:
        base: sizes of the base, which reads contexts and questions.

    Raises:
        ConfigError: if `select.bytes` is less than an entry takes.
    """

    def __init__(self, base: LlamaConfig, config: CompressionConfig, key: Array):
        self.base, self.budget, self.seed = base, Budget.of(config), config.seed
        self.scorer, self.spread = config.select.scorer, config.select.spread
        self.temperature, self.kvzip_teaches = config.select.temperature, kvzip_teaches(config)
        dtype = jnp.dtype(config.model.compute_dtype or config.model.dtype)
        entry_bytes = 2 * base.head_dim * dtype.itemsize
        self.most = config.select.bytes // entry_bytes
        if config.select.bytes and not self.most:
            raise ConfigError(
                f"select.bytes={config.select.bytes} holds no entry of this base, which takes "
                f"{entry_bytes} bytes: raise it, or set a ratio."
            )
        self.pool = config.encoder.pool
        key_s = jax.random.key(0)  # whatever the seed: runs that start otherwise have no mean
        self.encoder = Encoder(base, config.encoder, True, key)
        self.learned = new_weights(self.scorer, base, key_s) if config.learns_scores else None
        self.gists = new_gists(base, key_s) if self.scorer == "gist" else None
        shape = (base.n_layers, base.n_kv_heads, len(PROFILE_RATIOS))
        fixed = self.spread == "profile"
        self.profile = parameter(jnp.ones(shape), decay=False) if fixed else None
        self.repeat_ids: tuple[int, ...] = ()  # a question that asks to repeat the context

    def __call__(
        self,
        base: Llama,
        lora: LoRA | None,
        prefix_ids_P: Array,
        context: tuple[Array, Array],
        ratio: Array | float | None = None,
        asked: Asked | None = None,
    ) -> CompressedContext:
        """Read a context and keep some of its entries.

        Args:
            lora: the decoder's adapter; it reads contexts too unless the encoder has its own.
            context: ids `[B, C]` and lengths `[B]`.
            ratio: context tokens an entry, as in `Compressor`.
            asked: the question, for a scorer that looks at it.

        Raises:
            ConfigError: if the scorer looks at the question, and there is none.
        """
        ids_BxC, length_B = context
        B, C = ids_BxC.shape
        P = prefix_ids_P.shape[0]
        cache, score_LxBxKxC = self.read(base, lora, prefix_ids_P, context, asked)
        total_B = self.entries(length_B, ratio)
        kept_LxBxKxC = self.choose(jax.lax.stop_gradient(score_LxBxKxC), length_B, total_B)
        kept = kept_of(cache, P, C, kept_LxBxKxC)
        slots_B = -(-jnp.sum(kept_LxBxKxC, axis=(0, 2, 3)) // self.heads)
        compressed = kept_context(prefix_ids_P, base.embed(ids_BxC[:, :0]), kept, length_B)
        return dataclasses.replace(compressed, slots_B=slots_B)

    @property
    def heads(self) -> int:
        """KV heads of all layers."""
        return self.base.n_layers * self.base.n_kv_heads

    def entries(self, length_B: Array, ratio: Array | float | None) -> Array:
        """Entries that may be kept of each context, of all layers and KV heads together, `[B]`.

        Args:
            ratio: one for all, or for each row, several of which in a row may share a context.
        """
        if self.most:
            return jnp.minimum(self.most, self.heads * length_B)
        slots_B: Array
        if isinstance(ratio, float | int):
            slots_B = self.budget.at(ratio).slots(length_B)
        else:
            if ratio is not None and ratio.ndim:
                length_B = jnp.repeat(length_B, len(ratio) // len(length_B))
            slots_B = self.budget.slots(length_B, ratio)
        return self.heads * slots_B

    def choose(
        self, score_LxExKxC: Array, length_E: Array, total_B: Array, spread: str | None = None
    ) -> Array:
        """Mark what is kept, `[L, B, K, C]` (`cut`)."""
        return self.cut(score_LxExKxC, length_E, total_B, spread).kept

    def cut(
        self, score_LxExKxC: Array, length_E: Array, total_B: Array, spread: str | None = None
    ) -> Cut:
        """Mark what is kept, and say which score is the least that is.

        Args:
            total_B: entries, as in `spread.keep`: for several rows a context where B is more.
            spread: another than the configured one; `profile` needs a model that has one.
        """
        spread = spread or self.spread
        if spread != "profile":
            return keep(score_LxExKxC, length_E, total_B, spread)
        assert self.profile is not None
        profile_LxKxR = jax.lax.stop_gradient(self.profile[...])
        length_B = jnp.repeat(length_E, len(total_B) // len(length_E))
        share_LxBxK = shares_at(profile_LxKxR, self.heads * length_B / jnp.maximum(total_B, 1))
        return keep_parts(score_LxExKxC, length_E, whole_parts(share_LxBxK, length_B, total_B))

    def read(
        self,
        base: Llama,
        lora: LoRA | None,
        prefix_ids_P: Array,
        context: tuple[Array, Array],
        asked: Asked | None = None,
    ) -> tuple[Cache, Array]:
        """Prompt and context as keys and values, and the scores of the context's `[L, B, K, C]`."""
        ids_BxC, length_B = context
        B, C = ids_BxC.shape
        P = prefix_ids_P.shape[0]
        ids_BxT = jnp.concatenate([jnp.broadcast_to(prefix_ids_P, (B, P)), ids_BxC], axis=1)
        mask = Bidirectional(P + length_B, P) if self.encoder.bidirectional else None
        reading = self.reading(prefix_ids_P, context)
        scorer = find_scorer(self.scorer)
        own: Any = jnp.arange(self.base.n_layers) if self.learned is None else _values(self.learned)
        if self.pool:  # positions that a layer's scorer reads as one: 2 ** level
            level_L = jnp.arange(self.pool + 1 - self.base.n_layers, self.pool + 1)
            own = {**own, "level": jnp.maximum(level_L, 0)}
        if scorer.second == "question" and asked is None:
            raise ConfigError(
                f"select.scorer={self.scorer!r} looks at the question, which is not known while a "
                "context is kept for any: it is for `python -m gistjax.evaluate` alone."
            )
        first = _nothing if scorer.second else partial(scorer.score, reading)
        cache, score = base.observe(
            base.embed(ids_BxT),
            jnp.arange(P + C)[None],
            mask,  # None: causal; padding stands last, where nobody sees it
            self.encoder.lora or lora,
            base.empty_cache(B, P + C),
            0,
            first,
            own,
        )
        if not scorer.second:
            return cache, score
        if self.gists is not None:
            gists_BxJxD = jnp.broadcast_to(
                self.gists[...].astype(base.dtype), (B, *self.gists.shape)
            )
            read = gists_BxJxD, jnp.full(B, gists_BxJxD.shape[1])
            adapter, cached = frozen(self.encoder.lora or lora), jax.lax.stop_gradient(cache)
            return cache, second_pass(base, adapter, cached, reading, read, scorer, own)
        if scorer.second == "repetition" or asked is None:
            read = self.repetition(base, ids_BxC, length_B)
        else:
            read = base.embed(asked[0]), asked[1]
        return cache, second_pass(base, lora, cache, reading, read, scorer)

    def reading(self, prefix_ids_P: Array, context: tuple[Array, Array]) -> Reading:
        """What a scorer knows of the pass that reads contexts behind the prompt."""
        return Reading(self.base, prefix_ids_P.shape[0], *context, self.seed)

    def repetition(self, base: Llama, ids_BxC: Array, length_B: Array) -> tuple[Array, Array]:
        """Embeddings of the question that asks to repeat the context, and of the context."""
        repeat_R = jnp.asarray(self.repeat_ids, ids_BxC.dtype)
        repeat_BxR = jnp.broadcast_to(repeat_R, (ids_BxC.shape[0], len(repeat_R)))
        ids_BxS = jnp.concatenate([repeat_BxR, ids_BxC], axis=1)
        return base.embed(ids_BxS), len(repeat_R) + length_B


def second_pass(
    base: Llama,
    lora: LoRA | None,
    cache: Cache,
    reading: Reading,
    read: tuple[Array, Array],
    scorer: Scorer,
    own: Any = None,
) -> Array:
    """The scores of a scorer that watches a decoder read something behind the context.

    Args:
        read: vectors `[B, S, D]`, and how many `[B]`.
        own: the scorer's weights, stacked along L; by default the layers' numbers.
    """
    x_BxSxD, asked_B = read
    B, S, _ = x_BxSxD.shape
    U = reading.prefix + reading.size
    end_B = reading.end_B
    grown = base.empty_cache(B, U + S).insert(0, cache)
    own_BxSxS = causal_mask(lengths_to_valid(asked_B, S))
    context_BxSxU = jnp.broadcast_to(lengths_to_valid(end_B, U)[:, None], (B, S, U))
    score_LxBxKxC: Array
    _, score_LxBxKxC = base.observe(
        x_BxSxD,
        end_B[:, None] + jnp.arange(S),
        jnp.concatenate([context_BxSxU, own_BxSxS], axis=2),
        lora,
        grown,
        U,
        partial(scorer.score, dataclasses.replace(reading, asked_B=asked_B)),
        jnp.arange(reading.config.n_layers) if own is None else own,
    )
    return score_LxBxKxC


def kept_of(
    cache: Cache, prefix: int, size: int, kept_LxBxKxC: Array, gate_LxBxKxC: Array | None = None
) -> Kept:
    """The context's entries in a cache, each KV head's own, those that are not kept masked."""

    def entries(x: Array) -> Array:
        return jax.lax.slice_in_dim(x, prefix, prefix + size, axis=-2)

    if isinstance(cache.k, tuple):
        kept = jnp.unstack(kept_LxBxKxC)
        gates = [None] * len(kept) if gate_LxBxKxC is None else jnp.unstack(gate_LxBxKxC)
        layers = zip(cache.k, cache.v, kept, gates, strict=True)
        return tuple(KeptLayer(entries(k), entries(v), mask, gate) for k, v, mask, gate in layers)
    return KeptLayer(entries(cache.k), entries(cache.v), kept_LxBxKxC, gate_LxBxKxC)


def kept_context(
    prefix_ids_P: Array, nothing_Bx0xD: Array, kept: Kept, length_B: Array
) -> CompressedContext:
    """A compressed context of kept entries alone, which has no positions of its own."""
    nothing = soft_context(prefix_ids_P, nothing_Bx0xD, jnp.zeros_like(length_B))
    return dataclasses.replace(nothing, kept=kept, length_B=length_B)


def read_joined(context: CompressedContext, joined_ExG: Array) -> CompressedContext:
    """A context of kept entries whose rows read what is kept of others beside it, too.

    All stand in one place, as `kept.join_kept` puts them. Of another context, the rows of a context
    read what the rows of that one do, in their order: at the ratios of those.

    Args:
        joined_ExG: for each context those that its rows read, by number; -1: none.
    """
    there_ExG, index_ExG = joined_ExG >= 0, jnp.maximum(joined_ExG, 0)
    E, G = joined_ExG.shape

    def entries(x: Array) -> Array:  # [..., E, K, X, H], of one layer or of all
        *_, K, X, H = x.shape
        taken = jnp.moveaxis(jnp.take(x, index_ExG, axis=-4), -4, -3)
        return taken.reshape(*x.shape[:-4], E, K, G * X, H)

    def rows(x: Array) -> Array:  # [..., B, K, X]
        *layers, B, K, X = x.shape
        taken = jnp.take(x.reshape(*layers, E, B // E, K, X), index_ExG, axis=-4)
        read = jnp.where(there_ExG[..., None, None, None], taken, jnp.zeros_like(taken))
        return jnp.moveaxis(read, -4, -2).reshape(*layers, B, K, G * X)

    def layer(kept: KeptLayer) -> KeptLayer:
        gate = None if kept.gate_BxKxX is None else rows(kept.gate_BxKxX)
        return KeptLayer(entries(kept.k), entries(kept.v), rows(kept.mask_BxKxX), gate)

    kept: Any = context.kept
    kept = tuple(map(layer, kept)) if isinstance(kept, tuple) else layer(kept)
    length_E = jnp.max(jnp.where(there_ExG, context.length_B[index_ExG], 0), axis=1)
    return dataclasses.replace(context, kept=kept, length_B=length_E)


def read_in(context: CompressedContext, bits_B: Array) -> CompressedContext:
    """A context of kept entries, each row of which is read as a file in its bits has them."""
    kept: Any = context.kept
    if isinstance(kept, tuple):
        kept = tuple(dataclasses.replace(layer, bits_B=bits_B) for layer in kept)
    else:
        bits_LxB = jnp.broadcast_to(bits_B, (len(kept.k), *bits_B.shape))
        kept = dataclasses.replace(kept, bits_B=bits_LxB)
    return dataclasses.replace(context, kept=kept)


def _values(weights: Any) -> dict[str, Array]:
    """The arrays of a dictionary of parameters."""
    return {name: weight[...] for name, weight in weights.items()}


def _nothing(layer: Array, seen: Seen) -> None:
    """Watch a pass that is scored by a later one."""
