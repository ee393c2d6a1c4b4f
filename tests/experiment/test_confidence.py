"""Scores as chances of being right: the curve, its file, and what is withheld."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.config import CompressionConfig, SelectConfig
from gistjax.errors import CheckpointError, DataError
from gistjax.evaluation.selective import accuracy_area, calibration_error
from gistjax.experiment.confidence import (
    Calibration,
    Confidence,
    copy_calibration,
    fit,
    read_calibration,
    write_calibration,
)
from gistjax.experiment.run_dir import RunDir

ANSWERS = st.lists(st.tuples(st.floats(-40, 0), st.booleans()), min_size=2, max_size=30)


def test_the_curve_that_gave_the_answers_is_found(rng):
    true, x_N = Calibration(0.6, 1.2), -rng.exponential(3, 40_000)
    right_N = rng.random(len(x_N)) < true(x_N)
    found = fit(x_N, right_N)
    assert found.slope == pytest.approx(0.6, rel=0.05)
    assert found.intercept == pytest.approx(1.2, abs=0.05)
    assert calibration_error(found(x_N), right_N) < 0.01 < calibration_error(np.exp(x_N), right_N)
    assert accuracy_area(found(x_N), right_N) == pytest.approx(accuracy_area(x_N, right_N))


@settings(deadline=None)
@given(ANSWERS)
def test_no_sample_gives_a_curve_that_is_not_finite_or_falls(answers):
    x, right = zip(*answers, strict=True)
    try:
        found = fit(x, right)
    except DataError:
        return
    assert found.slope > 0 and np.isfinite([found.slope, found.intercept]).all()
    chances = found([-1e9, -5, -1, 0])
    assert (np.diff(chances) >= 0).all() and (chances >= 0).all() and (chances <= 1).all()


def test_likelier_answers_that_are_not_right_more_often_are_refused():
    with pytest.raises(DataError, match="of 3 answers 3 are right"):
        fit([-1, -2, -3], [1, 1, 1])
    with pytest.raises(DataError, match="not right more often"):
        fit([-1, -1, -3, -3], [0, 0, 1, 1])
    with pytest.raises(DataError, match="not right more often"):
        fit([-1, -1], [0, 1])
    assert 0 < fit([-1, -2, -9], [1, 1, 0]).slope < 100, "told apart by a threshold"


def test_without_a_calibration_scores_are_probabilities():
    np.testing.assert_allclose(Confidence().scores([0.0, -1.0, -2000.0]), [1, np.exp(-1), 0])
    assert not Confidence().withholds(0.0)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "compressor.safetensors").write_bytes(b"weights")
    return RunDir(tmp_path)


def test_a_calibration_is_read_as_it_was_written_and_goes_with_a_copy(run, tmp_path):
    copy = RunDir(tmp_path / "copy")
    copy.path.mkdir()
    copy.exported.write_bytes(b"the same without folders")
    assert read_calibration(run) is None
    write_calibration(run, Calibration(0.5, -0.25), {"n_examples": 7})
    assert read_calibration(run) == Calibration(0.5, -0.25)
    copy_calibration(run, copy)
    assert read_calibration(copy) == Calibration(0.5, -0.25)
    assert json.loads(copy.calibration_file.read_text())["fitted_on"] == {"n_examples": 7}
    run.calibration_file.unlink()
    copy_calibration(run, copy)
    assert not copy.calibration_file.exists(), "an earlier copy's is of another compressor"


def test_a_full_context_of_which_entries_are_kept_has_no_calibration(run):
    write_calibration(run, Calibration(0.5, -0.25), {})
    config = CompressionConfig("none")
    spread = config.replace(select=SelectConfig(spread="head"))
    run.config_file.write_text(json.dumps({"config": config.to_json()}))
    assert read_calibration(run, config.replace(ratio=2.0)) == Calibration(0.5, -0.25)
    for otherwise in (config.replace(architecture="select"), spread):
        assert read_calibration(run, otherwise) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slope": -1.0}, "damaged"),
        ({"slope": 0}, "damaged"),
        ({"intercept": "0"}, "damaged"),
        ({"slope": float("inf")}, "damaged"),
        ({"compressor_sha256": None}, "damaged"),
        ({"format": 2}, "has format 2, written by another version"),
        ({"compressor_sha256": "0" * 64}, "is of another compressor.safetensors"),
    ],
)
def test_a_damaged_calibration_and_that_of_another_compressor_are_refused(run, changes, says):
    write_calibration(run, Calibration(0.5, -0.25), {})
    stored = json.loads(run.calibration_file.read_text())
    run.calibration_file.write_text(json.dumps({**stored, **changes}))
    with pytest.raises(CheckpointError, match=f"{says}.* remove it, and scores are raw"):
        read_calibration(run)
