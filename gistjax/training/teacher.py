"""What a teacher would answer: the distributions that the distillation loss learns from.

The teacher, as a rule the tuned model that reads the whole context, does not change, so its distributions on the gold
answers are computed once for each question and not at each step. Its most probable tokens are kept (as in Eyuboglu et
al. 2025, arXiv:2506.06266).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gistjax.data.batches import Batch, Targets, evaluation_batches
from gistjax.data.prompts import Row
from gistjax.model.compressed_lm import CompressedLM, answer_positions
from gistjax.sharding import fetch, put_batch, rows_per_step


def teacher_targets(
    teacher: CompressedLM,
    rows: Sequence[Row],
    answer_tokens: int,
    top: int,
    mesh: Mesh,
    batch_size: int,
    context_buckets: Sequence[int],
    question_buckets: Sequence[int],
) -> Targets:
    """The teacher's `top` most probable tokens at each answer position of each row, given the gold tokens before it.

    Args:
        answer_tokens: positions A of a row; those behind its answer hold nothing of use.
        batch_size: rows at a time, a device.
    """
    graphdef, state = nnx.split(teacher)

    @jax.jit
    def most_probable(state: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, state)
        S = batch.tokens_BxS.shape[1]
        wanted_BxA = answer_positions(batch.question_length_B, min(answer_tokens, S), S)
        memory = model.compress(batch.context_ids_ExC, batch.context_length_E)
        length_B = batch.question_length_B + batch.answer_length_B
        h_BxAxD = model.states(memory, batch.tokens_BxS, length_B, wanted_BxA)
        p_BxAxV = jax.nn.softmax(model.base.logits(h_BxAxD))
        p_BxAxY, ids_BxAxY = jax.lax.top_k(p_BxAxV, top)
        return ids_BxAxY, p_BxAxY / jnp.sum(p_BxAxY, axis=2, keepdims=True)

    shape = (len(rows), answer_tokens, top)
    targets = Targets(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    size = batch_size * rows_per_step(mesh)
    for indices, batch in evaluation_batches(
        rows, size, context_buckets, question_buckets, answers=True
    ):
        ids, p = fetch(most_probable(state, put_batch(batch, mesh)))
        targets.ids_NxAxY[indices, : ids.shape[1]] = ids[: len(indices)]
        targets.probabilities_NxAxY[indices, : p.shape[1]] = p[: len(indices)]
    return targets
