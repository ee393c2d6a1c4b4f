"""A step is the same however its rows are split into micro-batches, devices and tasks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.config import MeshConfig
from gistjax.data.batching import PlanSettings, TrainPlan
from gistjax.data.example import OBJECTIVES, Buckets, Targets, TokenizedExample
from gistjax.runtime.sharding import make_mesh, one_device, put_batch
from tests.helpers.tiny import start, tiny_batch

TEXT = {"reconstruction": 0.5, "continuation": 0.7, "cloze": 1.0}
ANSWER = {"teacher_forcing": 1.0, "distillation": 0.6, "contrastive": 0.2}
EVERY = {**ANSWER, **TEXT, "generation": 0.3}
ROWS = {
    "one task": ["answer"] * 8,
    "one cloze": ["answer"] * 7 + ["cloze"],
    "padding": ["answer", None, "answer", "answer", None, "answer", "answer", None],
    "every task, padding": [
        "answer",
        "cloze",
        "answer",
        "reconstruction",
        None,
        "continuation",
        "cloze",
        None,
    ],
    "text alone": ["cloze", None, "cloze", "continuation", *["reconstruction"] * 4],
    "padding alone in halves": ["answer", "cloze", "answer", "answer", None, None, None, None],
}


def step_rows(objectives, questions=1):
    """The rows of a step: one of each objective, padding where it is None; each with a teacher."""
    rng = np.random.default_rng(3)
    batch = tiny_batch(rng, len(objectives))
    for b, objective in enumerate(objectives):
        if objective is None:  # as `make_batch` pads
            batch.question_length_B[b], batch.answer_length_B[b] = 1, 0
            batch.context_length_E[b], batch.context_id_E[b] = 1, -1
        else:
            batch.objective_B[b] = OBJECTIVES.index(objective)
    probabilities = rng.random((len(objectives), 5, 3)).astype(np.float32)
    probabilities /= probabilities.sum(2, keepdims=True)
    ids = rng.integers(0, 61, probabilities.shape).astype(np.int32)
    by_context = {
        field.name: getattr(batch, field.name)[::questions]
        for field in dataclasses.fields(batch)
        if "_E" in field.name and getattr(batch, field.name) is not None
    }
    return dataclasses.replace(batch, teacher=Targets(ids, probabilities), **by_context)


def split(batch, K):
    """The same rows as K micro-batches."""
    tiled = dataclasses.replace(batch, prefix_ids_P=np.tile(batch.prefix_ids_P, K))
    return jax.tree.map(lambda x: x.reshape(K, -1, *x.shape[1:]), tiled)


def outcome(batch, K, mesh=None, weights=EVERY):
    """What a step of these rows logs, and its gradients."""
    mesh = mesh or one_device()
    state, frozen, step = started(mesh, tuple(weights.items()))
    state = jax.tree.map(jnp.copy, state)  # a step takes its state over
    return logged(*step(state, frozen, put_batch(split(batch, K), mesh, leading=1)))


@functools.cache
def started(mesh, weights):
    """The start of a training, whose step is compiled once for each shape of batch."""
    return start(mesh, weights=dict(weights))


def logged(state, metrics):
    """The losses of a step, and its gradients as Adam's first moments have them."""
    moments = jax.tree_util.tree_leaves_with_path(jax.device_get(state.opt_state))
    gradients = [leaf for path, leaf in moments if ".mu" in jax.tree_util.keystr(path)]
    return {name: float(x) for name, x in metrics.items()}, gradients


def assert_same(one, other):
    (log, gradients), (other_log, other_gradients) = one, other
    assert log.keys() == other_log.keys()
    for name, value in log.items():
        np.testing.assert_allclose(other_log[name], value, rtol=2e-6, err_msg=name)
    largest = max(np.abs(leaf).max() for leaf in gradients)
    assert largest > 0
    for leaf, other_leaf in zip(gradients, other_gradients, strict=True):
        np.testing.assert_allclose(other_leaf, leaf, rtol=0, atol=5e-6 * largest)


@pytest.fixture(scope="module")
def whole():
    """Outcomes of unsplit steps, each computed once."""
    found = {}

    def outcome_of(name, questions=1):
        key = name, questions
        if key not in found:
            found[key] = outcome(step_rows(ROWS[name], questions), 1)
        return found[key]

    return outcome_of


@pytest.mark.slow
@pytest.mark.parametrize("K", [2, pytest.param(4, marks=pytest.mark.long), 8])
@pytest.mark.parametrize("name", ROWS)
def test_micro_batches_make_no_difference(name, K, whole):
    assert_same(whole(name), outcome(step_rows(ROWS[name]), K))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "K"),
    [
        pytest.param(MeshConfig(), 1, marks=pytest.mark.long),
        pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), 1, marks=pytest.mark.long),
        (MeshConfig(data=2, fsdp=2, tensor=2), 2),
    ],
)
@pytest.mark.parametrize("name", ["padding", "every task, padding"])
def test_devices_make_no_difference(name, mesh, K, whole):
    assert_same(whole(name), outcome(step_rows(ROWS[name]), K, make_mesh(mesh)))


@pytest.mark.slow
@pytest.mark.parametrize("K", [2, pytest.param(4, marks=pytest.mark.long)])
def test_micro_batches_of_contexts_with_two_questions_make_no_difference(K, whole):
    name = "padding alone in halves"
    assert_same(whole(name, 2), outcome(step_rows(ROWS[name], 2), K))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "accumulation", "mesh"),
    [
        (8, 4, MeshConfig()),
        pytest.param(8, 4, None, marks=pytest.mark.long),
        pytest.param(4, 8, None, marks=pytest.mark.long),
    ],
)
def test_the_planners_text_rows_keep_their_weight_in_every_split(batch_size, accumulation, mesh):
    """150 questions beside 19 clozes, three or four in a step: most micro-batches have none."""
    rng = np.random.default_rng(0)

    def row(i):
        lengths = rng.integers(5, 17), rng.integers(2, 5), rng.integers(2, 5)
        ids = (rng.integers(0, 61, n).astype(np.int32) for n in lengths)
        return TokenizedExample(*ids, i, i, "cloze" if i >= 150 else "answer", (1, 2, 3))

    rows = [row(i) for i in range(169)]

    def batch(batch_size, accumulation):
        settings = PlanSettings(batch_size, accumulation=accumulation)
        return TrainPlan(rows, Buckets((16,), (9,)), settings).batch(0)

    def step_of(batches, mesh):
        state, frozen, step = start(mesh, weights={"teacher_forcing": 1.0, "cloze": 1.0})
        return logged(*step(state, frozen, put_batch(batches, mesh, leading=1)))

    one = step_of(batch(32, 1), one_device())
    assert 0 < (batch(32, 1).objective_B == 3).sum() < 8
    devices = make_mesh(mesh) if mesh else one_device()
    assert_same(one, step_of(batch(batch_size, accumulation), devices))


@pytest.mark.slow
def test_padding_rows_change_nothing(whole):
    longer = step_rows([*ROWS["one task"], *[None] * 8])
    eight = jax.tree.map(lambda x: x[:8], longer)
    eight = dataclasses.replace(eight, prefix_ids_P=longer.prefix_ids_P)
    assert_same(outcome(eight, 2), outcome(longer, 4))


@pytest.mark.slow
def test_a_task_without_rows_changes_nothing_of_the_others():
    rows = step_rows(ROWS["one cloze"])
    alone = outcome(rows, 4, weights={"teacher_forcing": 1.0})
    log, gradients = outcome(rows, 4, weights={"teacher_forcing": 1.0, "reconstruction": 1.0})
    assert log.pop("reconstruction") == 0
    assert_same(alone, (log, gradients))
