"""What a compressor is trained on: a dictionary of named losses, each a scalar in fp32.

Every loss is a mean over the batch's rows (padding rows apart), so that accumulating micro-batches of equal size gives
exactly the gradient of one large batch; only `contrastive` depends on which rows stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from gistjax.data.batches import Batch
from gistjax.model.compressor import CompressedLM, Memory, Reading, answer_positions
from gistjax.model.decoding import continue_greedily
from gistjax.model.masks import lengths_to_valid

TEMPERATURE = 0.1
"""Of the contrastive softmax over cosines."""


@dataclass(frozen=True)
class LossSettings:
    """What the losses need to know beside the batch."""

    weights: Mapping[str, float]
    answer_tokens: int  # A: answer positions gathered before the vocabulary product
    end_id: int


@dataclass
class Forward:
    """One batch on its way through the model; what several losses need is computed once."""

    model: CompressedLM
    batch: Batch
    settings: LossSettings

    @cached_property
    def memory(self) -> Memory:
        """The compressed contexts."""
        return self.model.memory(self.batch.context_ids_BxC, self.batch.context_length_B)

    @cached_property
    def n_answer(self) -> int:
        """A, or fewer where the tokens are."""
        return min(self.settings.answer_tokens, self.batch.tokens_BxS.shape[1])

    @cached_property
    def gold(self) -> tuple[Array, Reading | None]:
        """The states that predict the gold answer, `[B, A, D]`, and, if the model is to answer itself, what it has read
        before the answer.
        """
        tokens_BxS, question_length_B = self.batch.tokens_BxS, self.batch.question_length_B
        length_B = question_length_B + self.batch.answer_length_B
        wanted_BxA = answer_positions(question_length_B, self.n_answer, tokens_BxS.shape[1])
        if not self.settings.weights.get("generation"):
            return self.model.states(self.memory, tokens_BxS, length_B, wanted_BxA), None
        return self.model.read(
            self.memory, tokens_BxS, length_B, self.n_answer, wanted_BxA, seen_B=question_length_B
        )


def total_loss(
    model: CompressedLM, batch: Batch, settings: LossSettings
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the losses whose weight is not 0, and each of them.

    A loss of weight 0 is not computed. Context and question are read once for all of them.
    """
    forward = Forward(model, batch, settings)
    losses = {name: LOSSES[name](forward) for name, weight in settings.weights.items() if weight}
    total = sum((settings.weights[name] * loss for name, loss in losses.items()), jnp.zeros(()))
    return total, losses


def teacher_forcing(forward: Forward) -> Array:
    """Cross-entropy of the gold answer and the end token, given the gold tokens before."""
    h_BxAxD, _ = forward.gold
    return _answer_cross_entropy(forward, h_BxAxD)


def generation(forward: Forward) -> Array:
    """Cross-entropy of the gold answer given the model's own greedy prefix.

    The model answers without gradient, as far as the batch's longest gold answer goes, from the keys and values that
    the gold pass has left. Its own tokens are then read behind the question with gradient, slots in place, so that the
    compressor learns from them. Gold token a is predicted from the model's own tokens before it.
    """
    h_BxAxD, reading = forward.gold
    assert reading is not None
    first_Bx1xD = h_BxAxD[:, :1]
    own_BxA = _own_answers(forward, first_Bx1xD[:, 0], reading)
    rest_BxAxD, _ = forward.model.extend(own_BxA[:, :-1], reading, 0)
    return _answer_cross_entropy(forward, jnp.concatenate([first_Bx1xD, rest_BxAxD], axis=1))


def _own_answers(forward: Forward, last_BxD: Array, reading: Reading) -> Array:
    graphdef, state = nnx.split(forward.model)
    state, last_BxD, reading = jax.lax.stop_gradient((state, last_BxD, reading))
    return continue_greedily(
        nnx.merge(graphdef, state), last_BxD, reading, forward.n_answer, forward.settings.end_id,
        limit=jnp.max(forward.batch.answer_length_B) - 1,
    )  # fmt: skip


def contrastive(forward: Forward) -> Array:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) of the first slot against the base's view of the context.

    The target is the mean of the frozen base's states over the context (`context_views`). Negatives are the batch's
    other contexts, over all devices; rows with the same context are left out.
    """
    batch = forward.batch
    cosine_BxB = _unit(_first_slot(forward)) @ _unit(batch.context_view_BxD).T
    same_BxB = batch.context_id_B[:, None] == batch.context_id_B[None, :]
    real_B = batch.answer_length_B > 0
    keep_BxB = (~same_BxB & real_B[None, :]) | jnp.eye(len(real_B), dtype=bool)
    logits_BxB = jnp.where(keep_BxB, cosine_BxB / TEMPERATURE, -jnp.inf)
    loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxB, jnp.arange(len(real_B)))
    return _mean_over_rows(loss_B, real_B)


LOSSES: dict[str, Callable[[Forward], Array]] = {
    "teacher_forcing": teacher_forcing,
    "generation": generation,
    "contrastive": contrastive,
}


def _answer_cross_entropy(forward: Forward, h_BxAxD: Array) -> Array:
    """Mean over rows of the mean over each gold answer's tokens, A states `[B, A, D]` predicting them."""
    batch, A = forward.batch, forward.n_answer
    S = batch.tokens_BxS.shape[1]
    gold_BxA = jnp.take_along_axis(
        batch.tokens_BxS, answer_positions(batch.question_length_B + 1, A, S), axis=1
    )
    scores_BxAxV = forward.model.base.logits(h_BxAxD)
    loss_BxA = optax.softmax_cross_entropy_with_integer_labels(scores_BxAxV, gold_BxA)
    real_BxA = lengths_to_valid(batch.answer_length_B, A)
    length_B = jnp.maximum(batch.answer_length_B, 1)
    loss_B = jnp.sum(jnp.where(real_BxA, loss_BxA, 0.0), axis=1) / length_B
    return _mean_over_rows(loss_B, batch.answer_length_B > 0)


def _mean_over_rows(loss_B: Array, real_B: Array) -> Array:
    return jnp.sum(jnp.where(real_B, loss_B, 0.0)) / jnp.maximum(jnp.sum(real_B), 1)


def _first_slot(forward: Forward) -> Array:
    memory, cut = forward.memory, forward.model.slot_form == "key_values"
    assert memory.x_BxXxD is not None
    return memory.x_BxXxD[:, forward.batch.context_ids_BxC.shape[1] if cut else 0]


def _unit(x_BxD: Array) -> Array:
    x_BxD = x_BxD.astype(jnp.float32)
    return x_BxD * jax.lax.rsqrt(jnp.sum(x_BxD * x_BxD, axis=-1, keepdims=True) + 1e-12)
