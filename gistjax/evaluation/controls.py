"""Controls that a compressor has to beat: tokens within the same budget, and wrong contexts.

A selection keeps real tokens, as many as a compressor would have slots, and the uncompressed model
reads them in order: the first, the last, random ones, or those that surprise the base most (Li et
al. 2023, arXiv:2310.06201, by token).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.compress.budget import Budget
from gistjax.config import CompressionConfig
from gistjax.data.batching import evaluation_batches
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.model.llama import Llama
from gistjax.runtime.sharding import put_batch, rows_per_step, to_host

Scores = Callable[[TokenizedExample], np.ndarray]
"""Functions of a row that score its context's tokens, `[context tokens]`: the best are kept."""


def select_tokens(
    rows: Sequence[TokenizedExample], config: CompressionConfig, surprisal: Scores
) -> list[TokenizedExample]:
    """Return the rows with the tokens of their contexts that `config.data.select` prefers.

    Args:
        surprisal: scores each context's tokens, where the selection asks for it.
    """
    by_place: dict[str, Scores] = {
        "first": lambda row: -np.arange(len(row.context_ids)),
        "last": lambda row: np.arange(len(row.context_ids)),
        "random": lambda row: np.random.default_rng([config.seed, row.context_id]).random(
            len(row.context_ids)
        ),
        "surprisal": surprisal,
    }
    score, budget = by_place[config.data.select], Budget.of(config)
    kept: dict[int, np.ndarray] = {}
    for row in rows:
        if row.context_id not in kept:
            best = np.argsort(-score(row), kind="stable")[: budget.slots(len(row.context_ids))]
            kept[row.context_id] = row.context_ids[np.sort(best)]
    return [dataclasses.replace(row, context_ids=kept[row.context_id]) for row in rows]


def token_surprisal(
    base: Llama,
    rows: Sequence[TokenizedExample],
    prefix_ids: Sequence[int],
    mesh: Mesh,
    batch_size: int,
    buckets: Buckets,
) -> Scores:
    """Return -log p of context tokens under the untuned base, given all tokens before them.

    Args:
        prefix_ids: at least one, for the first token to be predicted from.
    """
    distinct = list({row.context_id: row for row in rows}.values())
    graphdef, state = nnx.split(base)
    prefix_P = jnp.asarray(prefix_ids, jnp.int32)
    score = jax.jit(lambda state, ids: _surprisal(nnx.merge(graphdef, state), prefix_P, ids))
    surprisal: dict[int, np.ndarray] = {}
    batches = evaluation_batches(distinct, batch_size * rows_per_step(mesh), buckets)
    for indices, host_batch in batches:
        batch: Any = put_batch(host_batch, mesh)
        scores_BxC = to_host(score(state, batch.context_ids_ExC))
        for i, scores_C in zip(indices, scores_BxC, strict=False):
            row = distinct[i]
            surprisal[row.context_id] = scores_C[: len(row.context_ids)]
    return lambda row: surprisal[row.context_id]


def _surprisal(base: Llama, prefix_P: Array, ids_BxC: Array) -> Array:
    P = len(prefix_P)
    prefix_BxP = jnp.broadcast_to(prefix_P, (ids_BxC.shape[0], P))
    tokens_BxT = jnp.concatenate([prefix_BxP, ids_BxC], axis=1)
    h_BxTxD, _ = base(base.embed(tokens_BxT), jnp.arange(tokens_BxT.shape[1])[None])
    scores_BxCxV = base.logits(h_BxTxD[:, P - 1 : -1])
    right_BxC = jnp.take_along_axis(scores_BxCxV, ids_BxC[:, :, None], axis=2)[:, :, 0]
    return jax.nn.logsumexp(scores_BxCxV, axis=2) - right_BxC


def shuffle_contexts(rows: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """Return the rows, each with the context half a split away.

    A model scores the same on them only if it ignores its slots. Contexts are in the order of the
    data, so that one so far away is of another article: neighbours fill their contexts with each
    other's paragraphs.
    """
    distinct = {row.context_id: row.context_ids for row in sorted(rows, key=lambda r: r.context_id)}
    ids, half = list(distinct), (len(distinct) + 1) // 2
    following = dict(zip(ids, ids[half:] + ids[:half], strict=True))
    return [
        dataclasses.replace(
            row,
            context_ids=distinct[following[row.context_id]],
            context_id=following[row.context_id],
        )
        for row in rows
    ]
