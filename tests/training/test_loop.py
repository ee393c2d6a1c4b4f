import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.config import CompressionConfig, MeshConfig
from gistjax.data.example import OBJECTIVES
from gistjax.errors import TrainingError
from gistjax.runtime.sharding import make_mesh
from gistjax.runtime.signals import StopSignals
from gistjax.training.checkpoint import Checkpointer
from gistjax.training.loop import MAX_BAD_IN_A_ROW, Loop, _fetch, check_health, train
from gistjax.training.metrics_log import MetricsLog
from gistjax.training.step import Health, no_bad_step
from tests.helpers.tiny import BAD, make_bad, micro_batches, poison, start


@pytest.mark.parametrize(
    "policy, bad, in_a_row",
    [
        ("stop", 0, 0),
        ("skip", 0, 0),
        ("skip", 1, 1),
        ("skip", 500, MAX_BAD_IN_A_ROW - 1),
    ],
)
def test_training_goes_on(policy, bad, in_a_row):
    check_health(Health(bad, in_a_row, 7, 1.0), CompressionConfig(on_bad_step=policy))


@pytest.mark.parametrize(
    "policy, bad, in_a_row, told",
    [
        ("stop", 1, 1, "bad step 7, 1 so far.*on_bad_step=skip"),
        (
            "stop",
            1,
            0,
            "bad step 7, 1 so far",
        ),  # also where good ones followed before anybody looked
        ("skip", 25, MAX_BAD_IN_A_ROW, "bad step 7, 20 in a row(?!.*on_bad_step=skip)"),
    ],
)
def test_training_stops_and_says_what_to_change(policy, bad, in_a_row, told):
    with pytest.raises(TrainingError, match=told):
        check_health(Health(bad, in_a_row, 7, 1.0), CompressionConfig(on_bad_step=policy))


def test_a_first_step_that_is_bad_does_not_blame_the_learning_rate():
    with pytest.raises(TrainingError, match="bad step 1.*architecture='gist'(?!.*_lr)"):
        check_health(Health(1, 1, 1, 1.0), CompressionConfig())


def test_a_loss_without_rows_is_not_logged_as_zero():
    batch = micro_batches(np.random.default_rng(0), K=2, B=4)
    batch.objective_B[1, 3] = OBJECTIVES.index("cloze")
    losses = dict.fromkeys(("loss", "teacher_forcing", "contrastive", "cloze"), jnp.ones(()))
    losses["reconstruction"] = losses["continuation"] = jnp.zeros(())
    logged = {"loss": 1.0, "teacher_forcing": 1.0, "contrastive": 1.0, "cloze": 1.0}
    assert _fetch(losses, no_bad_step(), batch) == logged
    batch.answer_length_B[1, 3] = 0  # it is padding
    del logged["cloze"]
    assert _fetch(losses, no_bad_step(), batch) == logged


@pytest.fixture(scope="module")
def beginning():
    """Mesh, state, frozen leaves and step of a training whose loss can be poisoned."""
    mesh = make_mesh(MeshConfig())
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        yield mesh, *start(mesh, weights={"teacher_forcing": 1.0}, spike_factor=10.0)


class OneBadStep:
    """A plan of the same rows again and again, bad in the fifth step."""

    total_steps = 6

    def __init__(self, kind):
        self.kind, self.batches = kind, micro_batches(np.random.default_rng(0))

    def batch(self, step):
        return make_bad(self.batches, self.kind) if step + 1 == 5 else self.batches


def run(beginning, kind, folder, **config):
    """Six steps, logged and saved in a folder."""
    mesh, state, frozen, step = beginning
    state = jax.tree.map(lambda leaf: leaf.copy(), state)  # the step's own is donated
    config = CompressionConfig(**{"log_every": 1, **config})
    log = MetricsLog(folder / "metrics.jsonl", 0)
    with Checkpointer(folder / "checkpoint") as checkpointer, StopSignals() as stop:
        train(state, frozen, Loop(config, mesh, OneBadStep(kind), step, checkpointer, log, stop))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_step_stops_before_it_is_saved(kind, beginning, tmp_path):
    with pytest.raises(TrainingError, match="bad step 5, 1 so far"):
        run(beginning, kind, tmp_path, checkpoint_every=1)
    assert Checkpointer(tmp_path / "checkpoint").steps == [3, 4]


@pytest.mark.slow
def test_bad_steps_between_two_looks_are_not_saved_either(beginning, tmp_path):
    """Steps are looked at where they are logged or saved; a good one in between hides nothing."""
    with pytest.raises(TrainingError, match="bad step 5, 1 so far"):
        run(beginning, "nan gradient", tmp_path, checkpoint_every=3, log_every=3)
    assert Checkpointer(tmp_path / "checkpoint").steps == [3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_step_is_skipped_and_counted(kind, beginning, tmp_path):
    run(beginning, kind, tmp_path, checkpoint_every=3, on_bad_step="skip")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped_steps", 0) for row in rows] == [0, 0, 0, 0, 1, 1]
    assert (rows[4]["loss"] is None) == kind.endswith("loss")
    with Checkpointer(tmp_path / "checkpoint") as checkpointer:
        assert checkpointer.steps == [3, 6]
        saved = checkpointer.restore(beginning[1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.trainable))
    assert saved.health.bad_steps == 1
