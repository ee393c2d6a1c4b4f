"""What a compressor is trained on: a dictionary of named losses, each a scalar in fp32.

Every loss is a mean over the batch's rows (padding rows apart), so that accumulating micro-batches of equal size gives
exactly the gradient of one large batch; only `contrastive` depends on which rows stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gistjax.data.batches import Batch
from gistjax.model.compressor import CompressedLM, Memory, answer_states
from gistjax.model.decoding import greedy
from gistjax.model.masks import causal_mask, lengths_to_valid, positions_of

TEMPERATURE = 0.1
"""Of the contrastive softmax over cosines."""


@dataclass(frozen=True)
class LossSettings:
    """What the losses need to know beside the batch."""

    weights: Mapping[str, float]
    answer_tokens: int  # A: answer positions gathered before the vocabulary product
    end_id: int
    contrastive_layers: int


def total_loss(
    model: CompressedLM, batch: Batch, settings: LossSettings
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the losses whose weight is not 0, and each of them.

    A loss of weight 0 is not computed. The context is compressed once for all of them.
    """
    memory = model.memory(batch.context_ids_BxC, batch.context_length_B)
    losses = {
        name: LOSSES[name](model, memory, batch, settings)
        for name, weight in settings.weights.items()
        if weight
    }
    total = sum((settings.weights[name] * loss for name, loss in losses.items()), jnp.zeros(()))
    return total, losses


def teacher_forcing(
    model: CompressedLM, memory: Memory, batch: Batch, settings: LossSettings
) -> Array:
    """Cross-entropy of the gold answer and the end token, given the gold tokens before."""
    length_B = batch.question_length_B + batch.answer_length_B
    h_BxSxD = model.states(memory, batch.tokens_BxS, length_B)
    return _answer_cross_entropy(model, h_BxSxD, batch, settings)


def generation(model: CompressedLM, memory: Memory, batch: Batch, settings: LossSettings) -> Array:
    """Cross-entropy of the gold answer given the model's own greedy prefix.

    The answer is decoded without gradient from the same memory, then read once more behind the question, memory in
    place, so that the compressor receives gradient. Gold token a is predicted from the model's own tokens before it.
    """
    own_BxA = jax.lax.stop_gradient(
        greedy(
            model, memory, batch.tokens_BxS, batch.question_length_B,
            settings.answer_tokens, settings.end_id,
        )
    )  # fmt: skip
    tokens_BxS = put_answers(batch.tokens_BxS, batch.question_length_B, own_BxA)
    h_BxSxD = model.states(memory, tokens_BxS, batch.question_length_B + batch.answer_length_B)
    return _answer_cross_entropy(model, h_BxSxD, batch, settings)


def contrastive(model: CompressedLM, memory: Memory, batch: Batch, settings: LossSettings) -> Array:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) of the first slot against the base's view of the context.

    The target is the mean of the frozen base's states over the context. Negatives are the batch's other contexts, over
    all devices; rows with the same context are left out.
    """
    slot_BxD = _first_slot(model, memory, batch)
    target_BxD = _context_view(model, batch, settings.contrastive_layers)
    cosine_BxB = _unit(slot_BxD) @ _unit(target_BxD).T
    same_BxB = batch.context_id_B[:, None] == batch.context_id_B[None, :]
    real_B = batch.answer_length_B > 0
    keep_BxB = (~same_BxB & real_B[None, :]) | jnp.eye(len(real_B), dtype=bool)
    logits_BxB = jnp.where(keep_BxB, cosine_BxB / TEMPERATURE, -jnp.inf)
    loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxB, jnp.arange(len(real_B)))
    return _mean_over_rows(loss_B, real_B)


LOSSES: dict[str, Callable[[CompressedLM, Memory, Batch, LossSettings], Array]] = {
    "teacher_forcing": teacher_forcing,
    "generation": generation,
    "contrastive": contrastive,
}


def put_answers(tokens_BxS: Array, question_length_B: Array, answer_BxA: Array) -> Array:
    """The tokens with each row's answer written behind its question; what does not fit is left out."""
    A = answer_BxA.shape[1]
    offset_BxS = jnp.arange(tokens_BxS.shape[1]) - question_length_B[:, None]
    answer_BxS = jnp.take_along_axis(answer_BxA, jnp.clip(offset_BxS, 0, A - 1), axis=1)
    return jnp.where((offset_BxS >= 0) & (offset_BxS < A), answer_BxS, tokens_BxS)


def _answer_cross_entropy(
    model: CompressedLM, h_BxSxD: Array, batch: Batch, settings: LossSettings
) -> Array:
    A = min(settings.answer_tokens, batch.tokens_BxS.shape[1])
    h_BxAxD = answer_states(h_BxSxD, batch.question_length_B, A)
    index_BxA = batch.question_length_B[:, None] + jnp.arange(A)
    index_BxA = jnp.minimum(index_BxA, batch.tokens_BxS.shape[1] - 1)
    gold_BxA = jnp.take_along_axis(batch.tokens_BxS, index_BxA, axis=1)
    loss_BxA = optax.softmax_cross_entropy_with_integer_labels(model.base.logits(h_BxAxD), gold_BxA)
    real_BxA = lengths_to_valid(batch.answer_length_B, A)
    length_B = jnp.maximum(batch.answer_length_B, 1)
    loss_B = jnp.sum(jnp.where(real_BxA, loss_BxA, 0.0), axis=1) / length_B
    return _mean_over_rows(loss_B, batch.answer_length_B > 0)


def _mean_over_rows(loss_B: Array, real_B: Array) -> Array:
    return jnp.sum(jnp.where(real_B, loss_B, 0.0)) / jnp.maximum(jnp.sum(real_B), 1)


def _first_slot(model: CompressedLM, memory: Memory, batch: Batch) -> Array:
    assert memory.x_BxXxD is not None
    first = batch.context_ids_BxC.shape[1] if model.slot_form == "key_values" else 0
    return memory.x_BxXxD[:, first]


def _context_view(model: CompressedLM, batch: Batch, n_layers: int) -> Array:
    ids_BxC, length_B = batch.context_ids_BxC, batch.context_length_B
    valid_BxC = lengths_to_valid(length_B, ids_BxC.shape[1])
    states_BxCxD, _ = model.base(
        model.base.embed(ids_BxC), positions_of(valid_BxC), causal_mask(valid_BxC),
        n_layers=min(n_layers, model.base.config.n_layers),
    )  # fmt: skip
    total_BxD = jnp.sum(
        jnp.where(valid_BxC[:, :, None], states_BxCxD, 0), axis=1, dtype=jnp.float32
    )
    return jax.lax.stop_gradient(total_BxD / length_B[:, None])


def _unit(x_BxD: Array) -> Array:
    x_BxD = x_BxD.astype(jnp.float32)
    return x_BxD * jax.lax.rsqrt(jnp.sum(x_BxD * x_BxD, axis=-1, keepdims=True) + 1e-12)
