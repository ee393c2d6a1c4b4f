"""The words of a context that each slot attends to or averages over: to look at, not to score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.data.batching import evaluation_batches
from gistjax.data.example import Batch, Buckets, TokenizedExample
from gistjax.data.prompts import decode
from gistjax.runtime.sharding import put_batch, rows_per_step, to_host

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORD_STARTS = ("Ġ", "▁", "Ċ")  # how byte-level and SentencePiece tokens write white space


def slot_attention(
    graphdef: nnx.GraphDef[CompressedLM],
    trainable: Any,
    frozen: Any,
    rows: Sequence[TokenizedExample],
    tokenizer: PreTrainedTokenizerFast,
    mesh: Mesh,
    contexts: int,
    buckets: Buckets,
) -> list[dict[str, Any]]:
    """Return the weights of words in slots, of the first contexts of the rows.

    They are the architecture's own weights over the encoder's states. What the encoder mixed into a
    state before is not in them.

    Returns:
        `{"context_id", "words", "weights"}` of each context: weights `[slots][words]`, those of a
        slot sum to 1 but for rounding. Nothing of an architecture that reads nothing, or that has
        no `weights`.
    """

    def weigh(
        trainable: Any, frozen: Any, ids_BxC: Array, length_B: Array
    ) -> tuple[Array, Array] | None:
        return nnx.merge(graphdef, trainable, frozen).slot_weights(ids_BxC, length_B)

    distinct = list({row.context_id: row for row in rows}.values())[:contexts]
    size = -(-contexts // rows_per_step(mesh)) * rows_per_step(mesh)
    found: dict[int, dict[str, Any]] = {}
    for indices, host_batch in evaluation_batches(distinct, size, buckets):
        batch: Batch = put_batch(host_batch, mesh)
        parts = jax.jit(weigh)(trainable, frozen, batch.context_ids_ExC, batch.context_length_E)
        if parts is None:
            return []
        weights_BxMxC, slots_B = to_host(parts)
        for i, weights_MxC, slots in zip(indices.tolist(), weights_BxMxC, slots_B, strict=False):
            if not weights_MxC.any():
                continue
            row = distinct[i]
            words, starts = split_words(tokenizer, row.context_ids)
            weights_MxC = weights_MxC[:slots, : len(row.context_ids)]
            by_word = np.add.reduceat(weights_MxC, starts, axis=1)
            found[i] = {
                "context_id": row.context_id,
                "words": words,
                "weights": np.round(by_word.astype(np.float64), 4).tolist(),
            }
    return [found[i] for i in sorted(found)]


def split_words(
    tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Return the words of a text, and the first token of each: one that starts with white space."""
    ids = [int(id) for id in ids]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    starts = [i for i, token in enumerate(tokens) if i == 0 or token.startswith(WORD_STARTS)]
    ends = [*starts[1:], len(ids)]
    parts = [ids[a:b] for a, b in zip(starts, ends, strict=True)]
    words = [decode(tokenizer, part).strip() for part in parts]
    return words, starts
