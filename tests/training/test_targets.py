import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.compressed_lm import answer_positions
from gistjax.config import MeshConfig
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.runtime.sharding import make_mesh
from gistjax.training.losses import Forward, LossSettings, distillation
from gistjax.training.targets import contrastive_targets, distillation_targets
from tests.helpers.tiny import PREFIX, tiny_base, tiny_batch, tiny_model

A, TOP = 5, 3


def rows_of(batch):
    """The rows of a batch, unpadded."""
    columns = (
        batch.context_ids_ExC,
        batch.context_length_E,
        batch.tokens_BxS,
        batch.question_length_B,
        batch.answer_length_B,
    )
    return [
        TokenizedExample(context[:c], tokens[:q], tokens[q : q + a], i, i, prefix_ids=(1, 2, 3))
        for i, (context, c, tokens, q, a) in enumerate(zip(*columns, strict=True))
    ]


def targets_of(teacher, batch, top):
    return distillation_targets(
        teacher, rows_of(batch), A, make_mesh(MeshConfig()), 1, Buckets((16,), (9,)), top
    )


def log_softmax(model, batch):
    """Of every answer position, in one plain pass."""
    wanted = answer_positions(batch.question_length_B, A, batch.tokens_BxS.shape[1])
    memory = model.in_sequence(PREFIX, batch.context_ids_ExC, batch.context_length_E)
    length = batch.question_length_B + batch.answer_length_B
    h = model.states(memory, batch.tokens_BxS, length, wanted)
    return np.asarray(jax.nn.log_softmax(model.base.logits(h)), np.float64)


@pytest.mark.slow
def test_targets_are_the_teachers_most_probable_tokens(rng):
    teacher, batch = tiny_model("none"), tiny_batch(rng)
    targets = targets_of(teacher, batch, TOP)
    chex.assert_shape([targets.ids_NxAxY, targets.probabilities_NxAxY], (4, A, TOP))
    p = np.exp(log_softmax(teacher, batch))
    for b, length in enumerate(batch.answer_length_B):
        for a in range(length):
            best = np.argsort(-p[b, a])[:TOP]
            np.testing.assert_array_equal(targets.ids_NxAxY[b, a], best)
            np.testing.assert_allclose(
                targets.probabilities_NxAxY[b, a], p[b, a, best] / p[b, a, best].sum(), rtol=1e-4
            )


@pytest.mark.slow
def test_distillation_is_the_divergence_on_the_answer(rng):
    student, batch = tiny_model("pooling"), tiny_batch(rng)
    targets = targets_of(tiny_model("none"), batch, TOP)
    log_q, expected = log_softmax(student, batch), []
    for b, length in enumerate(batch.answer_length_B):
        terms = []
        for a in range(length):
            p = targets.probabilities_NxAxY[b, a].astype(np.float64)
            terms.append((p * (np.log(p) - log_q[b, a, targets.ids_NxAxY[b, a]])).sum())
        expected.append(np.mean(terms))
    settings = LossSettings({"distillation": 1.0}, A, end_id=7)
    batch = dataclasses.replace(batch, teacher=jax.tree.map(jnp.asarray, targets))
    loss = distillation(Forward(student, batch, settings))
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)


@pytest.mark.slow
def test_nothing_is_left_to_learn_from_oneself(rng):
    model, batch = tiny_model("none"), tiny_batch(rng)
    targets = targets_of(model, batch, 61)
    batch = dataclasses.replace(batch, teacher=jax.tree.map(jnp.asarray, targets))
    loss = distillation(Forward(model, batch, LossSettings({"distillation": 1.0}, A, end_id=7)))
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)


def row(context_ids, context_id):
    question = np.array([1, 2], np.int32)
    return TokenizedExample(np.array(context_ids, np.int32), question, question, context_id, 0)


def test_a_view_is_the_mean_of_the_states_whatever_stands_beside_it():
    base = tiny_base()
    rows = [row([5, 6, 7], 0), row([9, 8, 7, 6, 5, 4], 2), row([5, 6, 7], 0)]
    views = contrastive_targets(base, rows, 2, make_mesh(MeshConfig()), 1, Buckets((4, 8), (4,)))
    assert views.shape == (3, 32) and views.dtype == np.float32
    for one in rows:
        states, _ = base(
            base.embed(one.context_ids[None]), np.arange(len(one.context_ids))[None], n_layers=2
        )
        np.testing.assert_allclose(views[one.context_id], states[0].mean(0), rtol=1e-4, atol=1e-5)
    assert (views[1] == 0).all(), "no such context"
