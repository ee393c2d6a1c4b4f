"""The losses that train a compressor, by name; each is a scalar in fp32.

Every loss is a sum over a count, and both are of the whole step: a micro-batch gives its rows' sum,
divided by the rows of that objective in all micro-batches on all devices (`Whole`). Added up, that
is the mean over the step, whichever way its rows are split; padding rows count nowhere, and an
objective without rows gives 0.

    teacher_forcing, generation                answers to questions
    distillation                               answers to questions, from a teacher's distributions
    reconstruction, continuation, cloze        tasks on plain text (`data.text`), by teacher forcing
    contrastive, kvzip                         contexts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.scipy.special import xlogy

from gistjax.compress.compressed_lm import CompressedLM, answer_positions
from gistjax.compress.context import CompressedContext, DecodeState
from gistjax.compress.decoding import EndIds, continue_greedily
from gistjax.compress.select import read_in, read_joined
from gistjax.compress.taught import learn
from gistjax.config import TEXT_LOSSES
from gistjax.data.example import OBJECTIVES, Batch
from gistjax.model.masks import lengths_to_valid

TEMPERATURE = 0.1
"""Temperature of the contrastive softmax over cosines."""
MERGE_UP_TO = 1024
"""A base of at most this width D decodes its own answers with its adapters merged: there launches
cost more than copies of the weights."""


@dataclass(frozen=True)
class LossSettings:
    """Settings of the losses."""

    weights: Mapping[str, float]
    answer_tokens: int  # A: answer positions gathered before the vocabulary product
    end_id: EndIds  # of answers that the model writes itself


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whole:
    """What a micro-batch has to know of the whole step: K micro-batches of E contexts."""

    rows_O: Array  # int32, rows of each of OBJECTIVES, padding apart; 1 where there are none
    contexts: Array  # int32, padding apart
    context_id_KxE: Array
    context_view_KxExD: Any

    @classmethod
    def of(cls, batches: Batch) -> Whole:
        """Return that of a step's batches `[K, …]`."""
        real_KxB = batches.answer_length_B > 0
        rows = [
            jnp.sum(real_KxB & (batches.objective_B == objective))
            for objective in range(len(OBJECTIVES))
        ]
        return cls(
            jnp.maximum(jnp.stack(rows), 1),
            jnp.maximum(jnp.sum(batches.context_id_E >= 0), 1),
            batches.context_id_E,
            batches.context_view_ExD,
        )


@dataclass
class Forward:
    """One batch on its way through the model; what several losses need is computed once.

    Args:
        whole: of the step that the batch is a part of; by default the batch is all of it.
    """

    model: CompressedLM
    batch: Batch
    settings: LossSettings
    whole: Whole | None = None

    def __post_init__(self) -> None:
        if self.whole is None:
            self.whole = Whole.of(jax.tree.map(lambda x: jnp.asarray(x)[None], self.batch))

    @cached_property
    def learned(self) -> tuple[CompressedContext, Array]:
        """What a scorer in training keeps of the contexts, and its error `[E]` to KVzip's."""
        model, batch = self.model, self.batch
        assert model.selector is not None
        context = batch.context_ids_ExC, batch.context_length_E
        chooses = jnp.any(jnp.asarray(batch.kvzip_chooses_1))
        return learn(
            model.selector,
            model.base,
            model.lora,
            batch.prefix_ids_P,
            context,
            batch.ratio_N,
            chooses,
        )

    @cached_property
    def context(self) -> CompressedContext:
        """The compressed contexts, `[E, …]`."""
        batch = self.batch
        if batch.kvzip_chooses_1 is not None:
            context = self.learned[0]
        else:
            context = self.model.compress(
                batch.prefix_ids_P, batch.context_ids_ExC, batch.context_length_E, batch.ratio_N
            )
        if batch.joined_ExG is not None:
            context = read_joined(context, batch.joined_ExG)
        return context if batch.bits_B is None else read_in(context, batch.bits_B)

    @cached_property
    def n_answer(self) -> int:
        """A, or fewer where the tokens are, or all answers of the batch's task."""
        longest = self.batch.answer_tokens or self.settings.answer_tokens
        return min(longest, int(self.batch.tokens_BxS.shape[1]))

    @cached_property
    def gold(self) -> tuple[Array, DecodeState | None]:
        """The states that predict the gold answer, `[B, A, D]`, and what was read before it.

        The second is None unless the model is to answer itself.
        """
        model, batch, A = self.model, self.batch, self.n_answer
        tokens_BxS, question_length_B = batch.tokens_BxS, batch.question_length_B
        logit_positions_BxA = answer_positions(question_length_B, A, tokens_BxS.shape[1])
        room = A if self.settings.weights.get("generation") else 0
        if batch.questions > 1:
            state = model.prefill(self.context, tokens_BxS.shape[1] + room).repeat(batch.questions)
            return model.append(tokens_BxS, state, logit_positions_BxA, question_length_B)
        length_B = question_length_B + batch.answer_length_B
        if not room:
            return model.states(self.context, tokens_BxS, length_B, logit_positions_BxA), None
        return model.prefill_with(
            self.context, tokens_BxS, length_B, room, logit_positions_BxA, question_length_B
        )

    @cached_property
    def gold_loss_B(self) -> Array:
        """Cross-entropy of each row's gold tokens, given those before, `[B]`."""
        return _cross_entropy(self, self.gold[0])

    def mean(self, loss_B: Array, objective: str) -> Array:
        """The batch's part of the mean over the step's rows of an objective; 0 without rows."""
        assert self.whole is not None
        number = OBJECTIVES.index(objective)
        chosen_B = (self.batch.objective_B == number) & (self.batch.answer_length_B > 0)
        return jnp.sum(jnp.where(chosen_B, loss_B, 0.0)) / self.whole.rows_O[number]


def total_loss(
    model: CompressedLM, batch: Batch, settings: LossSettings, whole: Whole | None = None
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the losses whose weight is not 0, and each of them.

    A loss of weight 0 is not computed. Context and question are read once for all of them.

    Args:
        whole: of the step that the batch is a part of; the losses are then its part of the step's.
            By default the batch is all of it.
    """
    forward = Forward(model, batch, settings, whole)
    losses = {name: LOSSES[name](forward) for name, weight in settings.weights.items() if weight}
    total = sum((settings.weights[name] * loss for name, loss in losses.items()), jnp.zeros(()))
    return total, losses


def teacher_forcing(forward: Forward) -> Array:
    """Cross-entropy of the gold answer and the end token, given the gold tokens before."""
    return forward.mean(forward.gold_loss_B, "answer")


def distillation(forward: Forward) -> Array:
    """Kullback-Leibler divergence of the teacher's distribution from the model's.

    It is taken on the gold answer, over the teacher's most probable tokens (Hinton et al. 2015,
    arXiv:1503.02531).
    """
    teacher, A = forward.batch.teacher, forward.n_answer
    assert teacher is not None
    ids_BxAxY, p_BxAxY = teacher.ids_NxAxY[:, :A], teacher.probabilities_NxAxY[:, :A]
    scores_BxAxV = forward.model.base.logits(forward.gold[0])
    chosen_BxAxY = jnp.take_along_axis(scores_BxAxV, ids_BxAxY, axis=2)
    log_q_BxAxY = chosen_BxAxY - jax.nn.logsumexp(scores_BxAxV, axis=2, keepdims=True)
    divergence_BxA = jnp.sum(xlogy(p_BxAxY, p_BxAxY) - p_BxAxY * log_q_BxAxY, axis=2)
    return forward.mean(_mean_over_answer(forward, divergence_BxA), "answer")


def reconstruction(forward: Forward) -> Array:
    """Cross-entropy of a span of the context, given its first tokens."""
    return forward.mean(forward.gold_loss_B, "reconstruction")


def continuation(forward: Forward) -> Array:
    """Cross-entropy of the text that follows the context."""
    return forward.mean(forward.gold_loss_B, "continuation")


def cloze(forward: Forward) -> Array:
    """Cross-entropy of the words that are left out of a sentence of the context."""
    return forward.mean(forward.gold_loss_B, "cloze")


def generation(forward: Forward) -> Array:
    """Cross-entropy of the gold answer given the model's own greedy prefix.

    The model answers without gradient, as far as the batch's longest gold answer goes, from the
    keys and values that the gold pass has left; a narrow one with its adapters merged, rounded to
    the dtype of compute. Its own tokens are then read behind the question with gradient, slots in
    place, so that the compressor learns from them. Gold token a is predicted from the model's own
    tokens before it.
    """
    h_BxAxD, state = forward.gold
    assert state is not None
    first_Bx1xD = h_BxAxD[:, :1]
    own_BxA = _own_answers(forward, first_Bx1xD[:, 0], state)
    rest_BxAxD, _ = forward.model.decode_step(own_BxA[:, :-1], state, 0)
    loss_B = _cross_entropy(forward, jnp.concatenate([first_Bx1xD, rest_BxAxD], axis=1))
    return forward.mean(loss_B, "answer")


def _own_answers(forward: Forward, last_BxD: Array, state: DecodeState) -> Array:
    graphdef, weights = nnx.split(forward.model)
    weights, last_BxD, state = jax.lax.stop_gradient((weights, last_BxD, state))
    model = nnx.merge(graphdef, weights)
    if model.lora is not None and model.base.config.d_model <= MERGE_UP_TO:
        model.base, model.lora = model.base.merged(model.lora), None
    return continue_greedily(
        model,
        last_BxD,
        state,
        forward.n_answer,
        forward.settings.end_id,
        limit=jnp.max(forward.batch.answer_length_B) - 1,
    ).ids_BxA


def contrastive(forward: Forward) -> Array:
    """InfoNCE of the first slot against the base's view of the context.

    After van den Oord et al. 2018 (arXiv:1807.03748). The target is the mean of the frozen base's
    states over the context (`targets.contrastive_targets`). Negatives are the targets of the whole
    step's other contexts: those are frozen, so that a micro-batch can have them all.
    """
    batch, whole = forward.batch, forward.whole
    assert whole is not None
    slot_ExD, own_ExD = _unit(forward.context.x_BxXxD[:, 0]), _unit(batch.context_view_ExD)
    own_E = jnp.sum(slot_ExD * own_ExD, axis=1) / TEMPERATURE
    cosine_ExKxE = jnp.einsum("ed,kfd->ekf", slot_ExD, _unit(whole.context_view_KxExD))
    is_other_ExKxE = batch.context_id_E[:, None, None] != whole.context_id_KxE
    is_other_ExKxE &= whole.context_id_KxE >= 0
    # Against its own, a cosine is at most 2 larger: no exponential overflows
    odds_ExKxE = jnp.exp(cosine_ExKxE / TEMPERATURE - own_E[:, None, None])
    loss_E = jnp.log1p(jnp.sum(jnp.where(is_other_ExKxE, odds_ExKxE, 0.0), axis=(1, 2)))
    return jnp.sum(jnp.where(batch.context_id_E >= 0, loss_E, 0.0)) / whole.contexts


def kvzip(forward: Forward) -> Array:
    """Squared error of a learned scorer to the logarithm of KVzip's scores, over all entries."""
    real_E = forward.batch.context_id_E >= 0
    assert forward.whole is not None
    return jnp.sum(jnp.where(real_E, forward.learned[1], 0.0)) / forward.whole.contexts


LOSSES: dict[str, Callable[[Forward], Array]] = {
    "teacher_forcing": teacher_forcing,
    "generation": generation,
    "contrastive": contrastive,
    "kvzip": kvzip,
    "distillation": distillation,
    "reconstruction": reconstruction,
    "continuation": continuation,
    "cloze": cloze,
}
OBJECTIVE_OF = {name: "answer" for name in ("teacher_forcing", "generation", "distillation")}
OBJECTIVE_OF |= {name: name for name in TEXT_LOSSES}
"""The objective whose rows a loss is a mean over; `contrastive` and `kvzip` are over contexts."""


def _cross_entropy(forward: Forward, h_BxAxD: Array) -> Array:
    """Mean over each row's gold tokens, `[B]`, A states `[B, A, D]` predicting them."""
    batch, A = forward.batch, forward.n_answer
    S = batch.tokens_BxS.shape[1]
    gold_BxA = jnp.take_along_axis(
        batch.tokens_BxS, answer_positions(batch.question_length_B + 1, A, S), axis=1
    )
    scores_BxAxV = forward.model.base.logits(h_BxAxD)
    gold_BxAxV = jax.nn.one_hot(gold_BxA, scores_BxAxV.shape[2])  # a gather's gradient is a scatter
    loss_BxA = optax.softmax_cross_entropy(scores_BxAxV, gold_BxAxV)
    return _mean_over_answer(forward, loss_BxA)


def _mean_over_answer(forward: Forward, loss_BxA: Array) -> Array:
    length_B = forward.batch.answer_length_B
    real_BxA = lengths_to_valid(length_B, loss_BxA.shape[1])
    return jnp.sum(jnp.where(real_BxA, loss_BxA, 0.0), axis=1) / jnp.maximum(length_B, 1)


def _unit(x_BxD: Array) -> Array:
    x_BxD = x_BxD.astype(jnp.float32)
    return x_BxD * jax.lax.rsqrt(jnp.sum(x_BxD * x_BxD, axis=-1, keepdims=True) + 1e-12)
