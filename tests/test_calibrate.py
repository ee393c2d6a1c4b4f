"""The command, on a tiny run: what it asks about, and what it leaves."""

import dataclasses
import json

import pytest

import gistjax
from gistjax.calibrate import calibrate, check_asked
from gistjax.errors import ConfigError
from gistjax.evaluate import evaluate_run
from gistjax.evaluation import metrics
from gistjax.evaluation.metrics import Score
from gistjax.experiment.confidence import read_calibration
from gistjax.experiment.run_dir import RunDir
from tests.helpers.runs import ASKED, write_run

DATA = ASKED.data


@pytest.mark.slow
def test_a_run_is_calibrated_on_paragraphs_held_out_and_then_takes_a_threshold(
    tmp_path, monkeypatch
):
    data = dataclasses.replace(DATA, holdout=0.2, train_examples=1)
    run = write_run(tmp_path / "run", ASKED.replace(data=data))
    turns = iter(range(1_000_000))
    monkeypatch.setitem(metrics.METRICS, "squad", lambda *_: Score(0.5, float(next(turns) % 3 > 0)))
    monkeypatch.setattr("gistjax.calibrate.fit", lambda x, right: gistjax_fit(x, right))
    found = calibrate(run)
    assert found["n_examples"] == 4 and found["task"] == "answer" and found["ratio"] == 8.0
    assert read_calibration(RunDir(run)).slope == found["slope"] == 0.5
    engine = gistjax.load(run)
    answer = engine.compress("Ada wrote it.").ask("Who?", threshold=1.0)
    assert answer.abstained and answer.written and answer.calibrated
    scored = evaluate_run(run, threshold=1.0)
    assert scored["coverage"] == 0.0 and scored["threshold"] == 1.0


def gistjax_fit(log_probabilities, right):
    from gistjax.experiment.confidence import Calibration

    assert len(log_probabilities) == len(right) == 4 and (log_probabilities < 0).all()
    return Calibration(0.5, 0.25)


def test_a_run_is_calibrated_as_it_was_trained(tmp_path):
    whole = ASKED.replace(architecture="none", slot_start="tokens", slot_positions="packed")
    run = RunDir(tmp_path)
    run.config_file.write_text(json.dumps({"config": whole.to_json()}))
    with pytest.raises(ConfigError, match="as it was trained: leave --config.architecture out"):
        calibrate(tmp_path, whole.replace(architecture="select"))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "not on the validation split: set --config.data.holdout"),
        ({"holdout": 0.1, "tasks": {"squad": 1.0, "nq": 1.0}}, "for one task: name it"),
    ],
)
def test_what_is_no_share_of_one_training_set_is_refused(asked, says):
    with pytest.raises(ConfigError, match=says):
        check_asked(dataclasses.replace(DATA, **asked))


def test_what_was_trained_on_is_refused_before_weights_are_loaded(tmp_path):
    run = RunDir(tmp_path)
    about = {"config": ASKED.to_json(), "base_sha256": ""}
    run.config_file.write_text(json.dumps(about))
    held = ASKED.replace(data=dataclasses.replace(DATA, holdout=0.2))
    with pytest.raises(ConfigError, match="paragraphs are among those that .* was trained on"):
        calibrate(tmp_path, held)
