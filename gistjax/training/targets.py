"""Targets of the losses that compare with a frozen model, computed once for each row.

`distillation_targets` are a teacher's distributions on the gold answers. The teacher is as a rule
the tuned model that reads the whole context; its most probable tokens are kept (as in Eyuboglu et
al. 2025, arXiv:2506.06266).
`contrastive_targets` are the frozen base's own view of each context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.compress.compressed_lm import CompressedLM, answer_positions
from gistjax.data.batching import evaluation_batches
from gistjax.data.example import Batch, Buckets, Targets, TokenizedExample
from gistjax.model.llama import Llama
from gistjax.model.masks import lengths_to_valid
from gistjax.runtime.sharding import put_batch, rows_per_step, to_host

TEACHER_TOKENS = 16
"""A teacher's most probable tokens at each position that are learned from."""


def distillation_targets(
    teacher: CompressedLM,
    rows: Sequence[TokenizedExample],
    answer_tokens: int,
    mesh: Mesh,
    batch_size: int,
    buckets: Buckets,
    top: int = TEACHER_TOKENS,
) -> Targets:
    """The teacher's `top` most probable tokens at each answer position of each row.

    They are predicted from the gold tokens before.

    Args:
        answer_tokens: positions A of a row; those behind its answer hold nothing of use.
        batch_size: rows at a time, a device.
    """
    graphdef, state = nnx.split(teacher)

    @jax.jit
    def most_probable(state: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, state)
        S = batch.tokens_BxS.shape[1]
        logit_positions_BxA = answer_positions(batch.question_length_B, min(answer_tokens, S), S)
        context = model.compress(batch.prefix_ids_P, batch.context_ids_ExC, batch.context_length_E)
        length_B = batch.question_length_B + batch.answer_length_B
        h_BxAxD = model.states(context, batch.tokens_BxS, length_B, logit_positions_BxA)
        p_BxAxV = jax.nn.softmax(model.base.logits(h_BxAxD))
        p_BxAxY, ids_BxAxY = jax.lax.top_k(p_BxAxV, top)
        return ids_BxAxY, p_BxAxY / jnp.sum(p_BxAxY, axis=2, keepdims=True)

    shape = (len(rows), answer_tokens, top)
    targets = Targets(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    size = batch_size * rows_per_step(mesh)
    for indices, batch in evaluation_batches(rows, size, buckets, answers=True):
        ids, p = to_host(most_probable(state, put_batch(batch, mesh)))
        targets.ids_NxAxY[indices, : ids.shape[1]] = ids[: len(indices)]
        targets.probabilities_NxAxY[indices, : p.shape[1]] = p[: len(indices)]
    return targets


def contrastive_targets(
    base: Llama,
    rows: Sequence[TokenizedExample],
    n_layers: int,
    mesh: Mesh,
    batch_size: int,
    buckets: Buckets,
) -> np.ndarray:
    """The mean of the base's states over each context, `[contexts, D]` in fp32, by context id.

    Args:
        n_layers: base layers to run; 0 takes the embeddings.
        batch_size: contexts at a time, a device.
    """
    distinct = list({row.context_id: row for row in rows}.values())
    graphdef, state = nnx.split(base)
    view = jax.jit(
        lambda state, ids, length: _view(nnx.merge(graphdef, state), ids, length, n_layers)
    )
    size = max(row.context_id for row in distinct) + 1
    views = np.zeros((size, base.config.d_model), np.float32)
    batches = evaluation_batches(distinct, batch_size * rows_per_step(mesh), buckets)
    for indices, host_batch in batches:
        batch: Any = put_batch(host_batch, mesh)
        means_BxD = view(state, batch.context_ids_ExC, batch.context_length_E)
        ids = host_batch.context_id_E[: len(indices)]
        views[ids] = to_host(means_BxD)[: len(indices)]
    return views


def _view(base: Llama, ids_BxC: Array, length_B: Array, n_layers: int) -> Array:
    C = ids_BxC.shape[1]
    states_BxCxD, _ = base(
        base.embed(ids_BxC), jnp.arange(C)[None], n_layers=min(n_layers, base.config.n_layers)
    )
    real_BxCx1 = lengths_to_valid(length_B, C)[:, :, None]
    total_BxD = jnp.sum(jnp.where(real_BxCx1, states_BxCxD, 0), axis=1, dtype=jnp.float32)
    return total_BxD / length_B[:, None]
