"""Refinement: entries alone move, each document by itself, and nearer to the teacher's answers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.kept import entries_of
from gistjax.compress.refine import RATE, refine
from gistjax.config import LoraConfig, SelectConfig
from tests.helpers.tiny import PREFIX, TINY, Compiled, tiny_base, tiny_model

A, N, C, END = 3, 2, 16, (1,)
LENGTHS = (16, 9)


def model_of(scan=True, ratio=4.0) -> CompressedLM:
    select = SelectConfig("knorm")
    return tiny_model(
        "select", base=tiny_base(scan=scan), select=select, ratio=ratio, lora=LoraConfig(rank=2)
    )


def given(rng, contexts=2):
    """Contexts with two questions each; the last has one."""
    ids = rng.integers(2, TINY.vocab_size, (contexts, C))
    questions = rng.integers(2, TINY.vocab_size, (contexts * N, 5))
    asked_B = np.full(contexts * N, 5)
    asked_B[-1] = 1
    return (ids, np.array(LENGTHS[:contexts])), (questions, asked_B)


def refined(model, given, steps):
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, context, questions, steps):
        model = nnx.merge(graphdef, state)
        return refine(model, jnp.array(PREFIX), context, questions, steps, A, END)

    return jax.device_get(run(state, *jax.tree.map(jnp.asarray, given), steps))


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_the_divergence_falls_and_what_is_kept_stays(rng, scan):
    model, rows = model_of(scan), given(rng)
    context, loss_2xE = refined(model, rows, 50)
    chex.assert_shape(loss_2xE, (2, 2))
    assert (loss_2xE[1] < loss_2xE[0]).all() and loss_2xE[1].sum() < 0.7 * loss_2xE[0].sum()
    plain = jax.device_get(Compiled(model).compress(PREFIX, *map(jnp.asarray, rows[0])))
    np.testing.assert_array_equal(context.slots_B, plain.slots_B)
    for row in range(2):
        ours, theirs = entries_of(context, row), entries_of(plain, row)
        np.testing.assert_array_equal(ours.count_LxK, theirs.count_LxK)
        assert not np.allclose(ours.k_TxH, theirs.k_TxH)
        assert not np.allclose(ours.v_TxH, theirs.v_TxH)


@pytest.mark.slow
def test_a_document_is_refined_alike_beside_others_and_alone(rng):
    model, (context, questions) = model_of(), given(rng)
    together, loss_2xE = refined(model, (context, questions), 5)
    alone = tuple(x[:1] for x in context), tuple(x[:N] for x in questions)
    single, loss_2x1 = refined(model, alone, 5)
    np.testing.assert_allclose(loss_2xE[:, :1], loss_2x1, rtol=1e-4)
    np.testing.assert_allclose(
        entries_of(together).k_TxH, entries_of(single).k_TxH, rtol=1e-3, atol=1e-4
    )


def test_where_nothing_is_thrown_away_nothing_moves(rng):
    model, rows = model_of(ratio=1.0), given(rng)
    context, loss_2xE = refined(model, rows, 5)
    np.testing.assert_allclose(loss_2xE[0], 0, atol=1e-5)
    plain = jax.device_get(Compiled(model).compress(PREFIX, *map(jnp.asarray, rows[0])))
    for row in range(2):
        ours, theirs = entries_of(context, row), entries_of(plain, row)
        np.testing.assert_allclose(ours.k_TxH, theirs.k_TxH, atol=1e-5)


def divergence(model, whole, found, question):
    """By hand, from whole sequences: prompt, question and the teacher's own answer."""
    tokens, each = [*question], []
    while len(each) < A and tokens[-1] not in END:
        n = len(tokens)
        row = jnp.array([[*tokens, *[0] * (len(question) + A - n)]])
        states = (Compiled(model).states(x, row, jnp.array([n])) for x in (whole, found))
        teacher, ours = (jax.nn.log_softmax(model.base.logits(h[0, n - 1])) for h in states)
        each.append(float(jnp.sum(jnp.exp(teacher) * (teacher - ours))))
        tokens.append(int(jnp.argmax(teacher)))
    return np.mean(each)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "steps", "moves"), [(RATE, 1, True), (1e3, 2, False)])
def test_losses_are_of_what_was_kept_and_of_what_is_returned(rng, monkeypatch, rate, steps, moves):
    """One step moves entries; those whose loss rises stay."""
    monkeypatch.setattr("gistjax.compress.refine.RATE", rate)
    model, (context, questions) = model_of(), given(rng, contexts=1)
    questions = tuple(x[:1] for x in questions)
    found, loss_2x1 = refined(model, (context, questions), steps)
    whole, kept = (
        Compiled(model).compress(PREFIX, *map(jnp.asarray, context), ratio) for ratio in (1.0, 4.0)
    )
    by_hand = [divergence(model, whole, x, questions[0][0]) for x in (kept, found)]
    np.testing.assert_allclose(loss_2x1[:, 0], by_hand, rtol=1e-3)
    assert (loss_2x1[1, 0] < loss_2x1[0, 0]) == moves
    for ours, theirs in zip(*map(jax.tree.leaves, (found.kept, kept.kept)), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5) == (not moves or ours.dtype == bool)
