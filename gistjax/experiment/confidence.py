"""How sure a compressor is of an answer: its score, calibrated or raw, and what is withheld.

The raw score is the probability that greedy decoding gave the whole answer, the token that ends it
included. Calibrated, a score is the chance that an answer is right (an exact match): a logistic
curve over the logarithm of the raw one (Platt 1999), fitted on training paragraphs that were held
out (`gistjax.calibrate`) and kept beside the compressor as `calibration.json`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gistjax.config import CompressionConfig
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.evaluation.selective import Judged, calibration_error
from gistjax.experiment.meaning import changed_in_use
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.files import read_json, sha256_of, write_json

FORMAT = 1
"""Version of `calibration.json`."""


@dataclass(frozen=True)
class Calibration:
    """The curve 1 / (1 + exp(-(slope · log-probability + intercept)))."""

    slope: float  # above 0: a likelier answer is not less often right
    intercept: float

    def __call__(self, log_probabilities: ArrayLike) -> np.ndarray:
        """Return the chance that each answer is right."""
        return _logistic(self.slope * np.asarray(log_probabilities) + self.intercept)


@dataclass(frozen=True)
class Confidence:
    """What makes scores of log-probabilities, and below which an answer is withheld.

    Raises:
        ConfigError: if the threshold is no chance, or there is no calibration that makes it one.
    """

    calibration: Calibration | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        given = self.threshold
        if given is None:
            return
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= given <= 1:
            raise ConfigError(
                f"threshold={given!r}: give a chance of being right from 0 (every answer is "
                "given) to 1."
            )
        if self.calibration is None:
            raise ConfigError(
                f"threshold={given:g} is a chance of being right, and this compressor has no "
                "calibration that makes its scores one: run `python -m gistjax.calibrate`, or "
                "leave the threshold out."
            )

    def scores(self, log_probabilities: ArrayLike) -> np.ndarray:
        """Return calibrated scores; without a calibration the raw probabilities."""
        if self.calibration is None:
            return np.exp(np.asarray(log_probabilities, np.float64))
        return self.calibration(log_probabilities)

    def withholds(self, score: float) -> bool:
        """Return whether an answer of this score is not given."""
        return self.threshold is not None and score < self.threshold

    def given(self, judged: Judged) -> list[str]:
        """Return the answers, an empty text in place of what is withheld."""
        scored = zip(judged.texts, judged.score_N.tolist(), strict=True)
        return ["" if self.withholds(score) else text for text, score in scored]

    def about(self, judged: Judged) -> dict[str, Any]:
        """Return what `metrics.json` says of calibration and threshold."""
        found: dict[str, Any] = {"calibrated": self.calibration is not None}
        if self.calibration is not None:
            found["calibration_error"] = calibration_error(judged.score_N, judged.right_N)
        if self.threshold is not None:
            answered_N = (judged.score_N >= self.threshold) & ~judged.abstains_N
            found |= {"threshold": self.threshold, "coverage": float(answered_N.mean())}
        return found


def fit(log_probabilities: ArrayLike, right: ArrayLike) -> Calibration:
    """Return the logistic curve that is likeliest to have given right and wrong answers.

    Its targets are Platt's, a little inside 0 and 1, so that it is finite for every sample
    (Newton's method with halved steps, after Lin, Lin and Weng 2007).

    Raises:
        DataError: if all answers are right or all wrong, or likelier ones are not right more often.
    """
    x_N, right_N = np.asarray(log_probabilities, np.float64), np.asarray(right, bool)
    n_right, n_wrong = int(right_N.sum()), int((~right_N).sum())
    if not n_right or not n_wrong:
        raise DataError(
            f"of {len(right_N)} answers {n_right} are right: a calibration takes some that are and "
            "some that are not. Ask more questions."
        )
    target_N = np.where(right_N, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    mean, spread = x_N.mean(), x_N.std() or 1.0
    design_Nx2 = np.stack([(x_N - mean) / spread, np.ones_like(x_N)], axis=1)

    def loss(weights_2: np.ndarray) -> float:
        z_N = design_Nx2 @ weights_2
        return float((np.logaddexp(0, z_N) - target_N * z_N).sum())

    weights_2 = np.array([0.0, math.log((n_right + 1) / (n_wrong + 1))])
    for _ in range(100):
        p_N = _logistic(design_Nx2 @ weights_2)
        gradient_2 = design_Nx2.T @ (p_N - target_N)
        hessian_2x2 = (design_Nx2.T * (p_N * (1 - p_N))) @ design_Nx2 + 1e-9 * np.eye(2)
        step_2 = np.linalg.solve(hessian_2x2, gradient_2)
        while loss(weights_2 - step_2) > loss(weights_2) and np.abs(step_2).max() > 1e-9:
            step_2 /= 2
        if np.abs(step_2).max() <= 1e-9:
            break
        weights_2 = weights_2 - step_2
    slope = float(weights_2[0] / spread)
    if slope <= 0:
        raise DataError(
            "likelier answers are not right more often here, so that no score can tell which are: "
            "ask more questions, or of the task that was trained."
        )
    return Calibration(slope, float(weights_2[1] - slope * mean))


def _logistic(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0, -z)))


def write_calibration(run: RunDir, calibration: Calibration, about: dict[str, Any]) -> None:
    """Write `calibration.json` beside the compressor that it is of.

    Args:
        about: what it was fitted on.
    """
    own = {"format": FORMAT, **asdict(calibration), "compressor_sha256": sha256_of(run.exported)}
    write_json(run.calibration_file, {**own, "fitted_on": about})


def read_calibration(run: RunDir, config: CompressionConfig | None = None) -> Calibration | None:
    """Return the calibration of a run's compressor; None if there is none.

    Args:
        config: with which the run is asked, where that may differ: a full context of which entries
            are kept has none, nor have entries that are spread otherwise than in training.

    Raises:
        CheckpointError: if the file is damaged, of a later version or of another compressor.
    """
    stored = _read(run)
    if not stored or (config and changed_in_use(config, run.config())):
        return None
    return Calibration(stored["slope"], stored["intercept"])


def copy_calibration(run: RunDir, target: RunDir) -> None:
    """Write a run's calibration beside a copy of its compressor; without one, leave none there.

    Raises:
        CheckpointError: as `read_calibration`.
    """
    if stored := _read(run):
        own = {"compressor_sha256": sha256_of(target.exported)}
        write_json(target.calibration_file, {**stored, **own})
    else:
        target.calibration_file.unlink(missing_ok=True)


def _read(run: RunDir) -> dict[str, Any]:
    """Return `calibration.json` of a run, checked; nothing if there is none."""
    file = run.calibration_file
    if not file.is_file():
        return {}
    fix = "remove it, and scores are raw, or run `python -m gistjax.calibrate` again"
    stored: dict[str, Any] = read_json(file, CheckpointError, fix, _is_calibration)
    if stored["format"] != FORMAT:
        raise CheckpointError(
            f"{file} has format {stored['format']}, written by another version of gistjax: {fix}."
        )
    if stored["compressor_sha256"] != sha256_of(run.exported):
        raise CheckpointError(f"{file} is of another {run.exported.name} than lies there: {fix}.")
    return stored


def _is_calibration(stored: Any) -> bool:
    numbers = (stored["slope"], stored["intercept"])
    return (
        isinstance(stored["compressor_sha256"], str)
        and all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
        and stored["slope"] > 0
        and stored["format"] >= 1
    )
