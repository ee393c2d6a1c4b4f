"""The likelihood of gold answers: what a model knows of long ones that it cannot yet write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.compress.compressed_lm import CompressedLM, answer_positions
from gistjax.config import ASKS
from gistjax.data.batching import evaluation_batches, longest_answer
from gistjax.data.example import Batch, Buckets, TokenizedExample
from gistjax.model.masks import lengths_to_valid
from gistjax.runtime.sharding import put_batch, to_host


def with_golds(
    rows: Sequence[TokenizedExample], golds: Sequence[np.ndarray], longest: int
) -> list[TokenizedExample]:
    """Return the rows with their gold answers, without those longer than `longest` tokens."""
    return [
        dataclasses.replace(row, answer_ids=gold)
        for row, gold in zip(rows, golds, strict=True)
        if len(row.question_ids) + len(gold) <= longest
    ]


def gold_log_likelihood(
    model: tuple[Any, Any, Any],
    rows: Sequence[TokenizedExample],
    mesh: Mesh,
    batch_size: int,
    buckets: Buckets,
) -> np.ndarray:
    """Return the mean log probability of each row's answer tokens, `[N]` in nats.

    Each is predicted from the gold tokens before it; the end token counts.

    Args:
        model: structure, trainable leaves and frozen leaves.
        rows: with their gold answers.
        batch_size: rows at a time, on all devices.
    """
    (graphdef, *weights), A = model, longest_answer(rows)

    @jax.jit
    def score(trainable: Any, frozen: Any, batch: Batch) -> Array:
        model = nnx.merge(graphdef, trainable, frozen)
        asks = model.selector is not None and model.selector.scorer == ASKS
        context = model.compress(
            batch.prefix_ids_P,
            batch.context_ids_ExC,
            batch.context_length_E,
            asked=(batch.tokens_BxS, batch.question_length_B) if asks else None,
        )
        return _log_likelihood(model, context, batch, A)

    found_N = np.zeros(len(rows))
    for indices, batch in evaluation_batches(rows, batch_size, buckets, answers=True):
        scores_B = to_host(score(*weights, put_batch(batch, mesh)))
        found_N[indices] = scores_B[: len(indices)]
    return found_N


def _log_likelihood(model: CompressedLM, context: Any, batch: Batch, A: int) -> Array:
    S = batch.tokens_BxS.shape[1]
    A = min(A, S)
    length_B = batch.question_length_B + batch.answer_length_B
    positions_BxA = answer_positions(batch.question_length_B, A, S)
    h_BxAxD = model.states(context, batch.tokens_BxS, length_B, positions_BxA)
    gold_BxA = jnp.take_along_axis(
        batch.tokens_BxS, answer_positions(batch.question_length_B + 1, A, S), axis=1
    )
    logits_BxAxV = model.base.logits(h_BxAxD)
    loss_BxA = optax.softmax_cross_entropy_with_integer_labels(logits_BxAxV, gold_BxA)
    real_BxA = lengths_to_valid(batch.answer_length_B, A)
    total_B = jnp.sum(jnp.where(real_BxA, loss_BxA, 0.0), axis=1)
    return -total_B / jnp.maximum(batch.answer_length_B, 1)
