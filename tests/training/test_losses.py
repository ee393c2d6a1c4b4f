import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.compress.compressed_lm import answer_positions
from gistjax.config import SelectConfig
from gistjax.model.lora import Trainable
from gistjax.training import losses
from gistjax.training.losses import Forward, LossSettings, total_loss
from tests.helpers.tiny import PREFIX, Compiled, tiny_batch, tiny_model

ALL = {"teacher_forcing": 0.5, "generation": 0.3, "contrastive": 0.2}


def settings(weights=ALL, answer_tokens=5):
    return LossSettings(weights, answer_tokens, end_id=7)


def compiled(function, model, batch):
    """`function(model, batch)` as one program."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, batch: function(nnx.merge(graphdef, state), batch))(state, batch)


def total(model, batch, weights=ALL):
    return compiled(lambda model, batch: total_loss(model, batch, settings(weights)), model, batch)


def loss_of(loss, model, batch, weights=ALL):
    """One loss alone."""
    return compiled(
        lambda model, batch: loss(Forward(model, batch, settings(weights))), model, batch
    )


def log_probability(model, ids, length, context_tokens, target):
    """The logits of `target` after prefix, slots and `ids`: one row, no padding, no batching."""
    memory = model.in_sequence(PREFIX, jnp.array(context_tokens)[None], jnp.array([length]))
    h = model.states(memory, jnp.array(ids)[None], jnp.array([len(ids)]))
    logits = np.asarray(model.base.logits(h[0, -1]), np.float64)
    return logits[target] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gist", "none"])
@pytest.mark.parametrize("weights", [{"teacher_forcing": 1.0}, ALL])
def test_teacher_forcing_token_by_token(architecture, weights, rng):
    model, batch = tiny_model(architecture), tiny_batch(rng)
    plain, expected = Compiled(model), []
    for b in range(4):
        q, a = int(batch.question_length_B[b]), int(batch.answer_length_B[b])
        row = batch.tokens_BxS[b]
        terms = [
            log_probability(
                plain, row[: q + i], batch.context_length_E[b], batch.context_ids_ExC[b], row[q + i]
            )
            for i in range(a)
        ]
        expected.append(-np.mean(terms))
    loss = loss_of(losses.teacher_forcing, model, batch, weights)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "slot_form, merge_up_to",
    [(form, width) for form in ("soft_tokens", "key_values") for width in (0, 1024)],
)
def test_generation_scores_gold_given_the_models_own_prefix(
    slot_form, merge_up_to, rng, monkeypatch
):
    monkeypatch.setattr(losses, "MERGE_UP_TO", merge_up_to)
    model, batch = tiny_model("gist", slot_form=slot_form), tiny_batch(rng)
    plain, expected = Compiled(model), []
    memory = plain.in_sequence(PREFIX, batch.context_ids_ExC, batch.context_length_E)
    own = np.asarray(plain.greedy(memory, batch.tokens_BxS, batch.question_length_B, 5, 7))
    for b in range(4):
        q, a = int(batch.question_length_B[b]), int(batch.answer_length_B[b])
        row = batch.tokens_BxS[b]
        terms = [
            log_probability(
                plain,
                [*row[:q], *own[b, :i]],
                batch.context_length_E[b],
                batch.context_ids_ExC[b],
                row[q + i],
            )
            for i in range(a)
        ]
        expected.append(-np.mean(terms))
    loss = loss_of(losses.generation, model, batch)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_loss_reaches_the_compressor(name, rng):
    model, batch = tiny_model("gist"), tiny_batch(rng)
    graphdef, trainable, frozen = nnx.split(model, Trainable, ...)
    gradient = jax.grad(
        lambda t: total_loss(nnx.merge(graphdef, t, frozen), batch, settings({name: 1.0}))[0]
    )
    grad = jax.jit(gradient)(trainable)
    for leaf in jax.tree.leaves(grad.compressor.architecture):
        assert float(jnp.abs(leaf).max()) > 0
    assert jax.tree.structure(grad) == jax.tree.structure(trainable), "no gradient for the base"


def test_contrastive_against_a_plain_loop(rng):
    model, batch = tiny_model("conv"), tiny_batch(rng)
    batch.answer_length_B[3], batch.context_id_E[3] = 0, -1  # row 3 is padding
    memory = Compiled(model).in_sequence(PREFIX, batch.context_ids_ExC, batch.context_length_E)
    slot = np.asarray(memory.x_BxXxD[:, 0], np.float64)
    target = np.asarray(batch.context_view_ExD, np.float64)
    slot /= np.linalg.norm(slot, axis=1, keepdims=True)
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    expected = []
    for i in range(3):
        rivals = [j for j in range(3) if batch.context_id_E[j] != batch.context_id_E[i]]
        scores = np.array([slot[i] @ target[j] / 0.1 for j in [i, *rivals]])
        expected.append(np.log(np.exp(scores).sum()) - scores[0])
    loss = loss_of(losses.contrastive, model, batch)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)


ENTRIES = {"select": SelectConfig("knorm", warmup=0.0), "ratios": (1.0, 2.0, 4.0)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("gist", {"slot_form": "soft_tokens"}),
        ("gist", {"slot_form": "key_values"}),
        ("select", ENTRIES),
    ],
    ids=["soft_tokens", "key_values", "entries"],
)
def test_questions_that_share_a_compression_have_the_loss_of_those_that_do_not(
    architecture, changes, rng
):
    """Of entries each at a ratio of its own."""
    model, batch = tiny_model(architecture, **changes), tiny_batch(rng, B=6)
    if architecture == "select":
        batch = dataclasses.replace(batch, ratio_N=np.array([1, 4, 2, 1, 4, 2], np.float32))
    alone = jax.tree.map(lambda x: x, batch)
    first = jnp.array([0, 0, 2, 2, 4, 4])  # rows by context, two on each
    alone = dataclasses.replace(
        alone,
        context_ids_ExC=batch.context_ids_ExC[first],
        context_length_E=batch.context_length_E[first],
    )
    shared = dataclasses.replace(
        batch,
        context_ids_ExC=batch.context_ids_ExC[::2],
        context_length_E=batch.context_length_E[::2],
        context_id_E=batch.context_id_E[::2],
        context_view_ExD=batch.context_view_ExD[::2],
    )
    weights = {"teacher_forcing": 0.6, **({"generation": 0.4} if architecture == "gist" else {})}
    one, other = (total(model, b, weights)[0] for b in (alone, shared))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_text_tasks_are_means_over_their_own_rows(rng):
    model, batch = tiny_model("pooling"), tiny_batch(rng)
    batch.objective_B[:] = [0, 1, 3, 1]  # answer, reconstruction, cloze, reconstruction
    names = ("teacher_forcing", "reconstruction", "continuation", "cloze")
    _, parts = total(model, batch, dict.fromkeys(names, 1.0))
    loss_B = np.asarray(loss_of(lambda f: f.gold_loss_B, model, batch, {"cloze": 1.0}))
    expected = [loss_B[0], loss_B[[1, 3]].mean(), 0.0, loss_B[2]]
    np.testing.assert_allclose([parts[name] for name in names], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_batchs_ratios_decide_the_slots(rng):
    model, batch = tiny_model("pooling", target_length=16, ratios=(2.0, 4.0)), tiny_batch(rng)
    ratio = np.array([2, 4, 4, 2], np.float32)
    memory = Forward(model, dataclasses.replace(batch, ratio_N=ratio), settings()).context
    np.testing.assert_array_equal(memory.slots_B, np.ceil(batch.context_length_E / ratio))


def test_total_is_the_weighted_sum_and_zero_weights_cost_nothing(rng, monkeypatch):
    model, batch = tiny_model("gist"), tiny_batch(rng)
    loss, parts = total(model, batch)
    assert set(parts) == set(ALL)
    np.testing.assert_allclose(loss, sum(ALL[k] * parts[k] for k in ALL), rtol=1e-6)

    def never(*_):
        raise AssertionError("a loss of weight 0 was computed")

    monkeypatch.setitem(losses.LOSSES, "generation", never)
    _, parts = total(model, batch, {**ALL, "generation": 0.0})
    assert set(parts) == {"teacher_forcing", "contrastive"}


@pytest.mark.slow
def test_padding_rows_do_not_count(rng):
    model, batch = tiny_model("gist"), tiny_batch(rng)
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:2])]), batch)
    padded = dataclasses.replace(padded, prefix_ids_P=batch.prefix_ids_P)
    lengths = {"context_length_E": 1, "question_length_B": 1, "answer_length_B": 0}
    for name, value in lengths.items():
        array = getattr(padded, name)
        array[4:] = value
    padded.context_id_E[4:] = -1
    (_, parts), (_, padded_parts) = (total(model, b) for b in (batch, padded))
    for name in ALL:
        np.testing.assert_allclose(parts[name], padded_parts[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_generation_gradient_is_that_of_its_own_prefix_read_at_once(rng):
    """The shared pass, cache and all, must give the gradient of reading question and own answer in
    one go.
    """
    model, batch = tiny_model("gist"), tiny_batch(rng)
    graphdef, trainable, frozen = nnx.split(model, Trainable, ...)
    whole = Compiled(model)
    memory = whole.in_sequence(PREFIX, batch.context_ids_ExC, batch.context_length_E)
    own = np.asarray(whole.greedy(memory, batch.tokens_BxS, batch.question_length_B, 5, 7))
    tokens = batch.tokens_BxS.copy()
    for b, q in enumerate(batch.question_length_B):
        tokens[b, q : q + 5] = own[b, : 9 - q]

    def plain(t):
        model = nnx.merge(graphdef, t, frozen)
        forward = Forward(model, batch, settings())
        length = batch.question_length_B + batch.answer_length_B
        wanted = answer_positions(batch.question_length_B, 5, 9)
        h = model.states(forward.context, tokens, length, wanted)
        return forward.mean(losses._cross_entropy(forward, h), "answer")

    def shared(t):
        return losses.generation(Forward(nnx.merge(graphdef, t, frozen), batch, settings()))

    chex.assert_trees_all_close(
        *(jax.tree.leaves(jax.jit(jax.grad(f))(trainable)) for f in (plain, shared)),
        rtol=1e-3,
        atol=1e-6,
    )
