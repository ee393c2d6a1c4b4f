"""Where entries of the cache are kept: of each KV head how many, of each word by how many heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.spread import count_at
from gistjax.data.batching import evaluation_batches
from gistjax.data.example import Batch, Buckets, TokenizedExample
from gistjax.evaluation.slot_attention import split_words
from gistjax.runtime.sharding import put_batch, to_host

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def profile_parts(
    model: CompressedLM,
    contexts: Sequence[TokenizedExample],
    mesh: Mesh,
    batch_size: int,
    buckets: Buckets,
) -> np.ndarray:
    """Return the part of its entries that each KV head keeps at `PROFILE_RATIOS`, `[L, K, R]`.

    The entries with the highest scores of all layers and KV heads are kept (spread `all`). Parts
    are means over contexts, weighted by their tokens. A context is read and ranked once for all
    ratios.
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def count(state: Any, prefix_ids_P: Array, ids_BxC: Array, length_B: Array) -> Array:
        model = nnx.merge(graphdef, state)
        assert model.selector is not None
        context = ids_BxC, length_B
        _, score_LxBxKxC = model.selector.read(model.base, model.lora, prefix_ids_P, context)
        return count_at(score_LxBxKxC, length_B)

    kept_RxLxK, tokens = np.zeros((), np.int64), 0
    for indices, host_batch in evaluation_batches(contexts, batch_size, buckets):
        batch: Batch = put_batch(host_batch, mesh)
        given = batch.prefix_ids_P, batch.context_ids_ExC, batch.context_length_E
        kept_RxLxBxK = to_host(count(state, *given))[:, :, : len(indices)]
        kept_RxLxK = kept_RxLxK + kept_RxLxBxK.sum(2, dtype=np.int64)
        tokens += sum(contexts[i].context_length for i in indices)
    return np.moveaxis(kept_RxLxK / tokens, 0, -1)


def kept_map(
    contexts: Sequence[TokenizedExample],
    kept: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    shown: int,
) -> dict[str, Any]:
    """Return what is kept of some contexts, as `kept_entries.json` has it.

    Args:
        kept: what is kept of each context, bool `[L, K, tokens]`.
        shown: the most contexts of which each word is told.

    Returns:
        `parts` `[L][K]`, the part of its entries that a KV head keeps of all `n` contexts with
        their `tokens`; and `contexts`, for each `{"context_id", "words", "kept"}`, where `kept`
        has for each token of each word how many of the L·K KV heads keep it. Nothing, if no
        context has a token.
    """
    tokens = sum(mask.shape[2] for mask in kept)
    if not tokens:
        return {}
    counts_LxK = np.sum([mask.sum(2) for mask in kept], axis=0)
    real = [i for i, row in enumerate(contexts) if len(row.context_ids)]
    return {
        "n": len(contexts),
        "tokens": tokens,
        "parts": np.round(counts_LxK / tokens, 4).tolist(),
        "contexts": [_words(contexts[i], kept[i].sum((0, 1)), tokenizer) for i in real[:shown]],
    }


def joined_maps(maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the map of the contexts of several; nothing of those of none."""
    maps = [found for found in maps if found]
    if not maps:
        return {}
    tokens_G = [found["tokens"] for found in maps]
    parts_LxK = np.average([found["parts"] for found in maps], axis=0, weights=tokens_G)
    return {
        "n": sum(found["n"] for found in maps),
        "tokens": sum(tokens_G),
        "parts": np.round(parts_LxK, 4).tolist(),
        "contexts": [context for found in maps for context in found["contexts"]],
    }


def _words(
    row: TokenizedExample, heads_T: np.ndarray, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    words, starts = split_words(tokenizer, row.context_ids.tolist())
    by_word = [part.tolist() for part in np.split(heads_T, starts[1:])]
    return {"context_id": row.context_id, "words": words, "kept": by_word}
