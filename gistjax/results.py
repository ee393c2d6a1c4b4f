"""What a run writes beside its checkpoint: config, metrics, predictions."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gistjax.assembly import (
    Foundation,
    compresses,
    make_answerer,
    model_on,
    untuned_full_context,
)
from gistjax.config import CompressionConfig
from gistjax.data.prompts import Row
from gistjax.data.squad import Example
from gistjax.errors import CheckpointError
from gistjax.evaluation.generation import Answers
from gistjax.evaluation.scores import Scores, prediction_rows, score
from gistjax.planning import abstract_model, nominal_ratio, parameter_counts
from gistjax.training.step import TrainState, split_model
from gistjax.weights.registry import base_hash

log = logging.getLogger(__name__)

PACKAGES = ("gistjax", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
RESUMABLE = ("log_every", "checkpoint_every", "eval_every", "evaluation")
"""Fields that may change between a run and its resumption: they do not touch what is trained."""


def claim(rundir: Path, config: CompressionConfig) -> None:
    """Makes the run directory, or checks that the run in it is this one.

    Raises:
        CheckpointError: if another configuration was trained there.
    """
    rundir.mkdir(parents=True, exist_ok=True)
    path = rundir / "config.json"
    if not path.exists():
        return
    theirs = json.loads(path.read_text())["config"]
    ours = json.loads(json.dumps(config.to_json()))
    changed = [
        f"{key} was {theirs.get(key)!r} and is {value!r}"
        for key, value in ours.items()
        if key not in RESUMABLE and theirs.get(key) != value
    ]
    if changed:
        raise CheckpointError(
            f"{rundir} holds a run of another configuration ({'; '.join(changed)}). "
            "Choose another --workdir, or move that folder away."
        )


def check_base(rundir: Path, foundation: Foundation) -> None:
    """Makes sure that a run goes on with, or is evaluated on, the base that it was trained on.

    Raises:
        CheckpointError: if the base's bytes are others.
    """
    path = rundir / "config.json"
    theirs = json.loads(path.read_text())["base_sha256"] if path.exists() else None
    ours = base_hash(foundation.base)
    if theirs not in (None, ours):
        raise CheckpointError(
            f"{rundir} was trained on other base weights (SHA-256 {theirs[:12]}…, these are {ours[:12]}…): "
            "give the same weights and dtype, or another directory."
        )


def write_config(rundir: Path, config: CompressionConfig, foundation: Foundation) -> None:
    """Writes `config.json`: the resolved config, and all that is needed to get the same numbers."""
    write_json(
        rundir / "config.json",
        {
            "config": config.to_json(),
            "base_weights": foundation.source.describe(),
            "base_sha256": base_hash(foundation.base),
            "packages": versions(),
            "device": device_name(),
            "mesh": dict(foundation.mesh.shape),
        },
    )


def provenance(config: CompressionConfig) -> dict[str, str]:
    """The metadata of an exported compressor."""
    return {"format": "gistjax", "config": json.dumps(config.to_json())}


class Scorer:
    """Turns answers into scores and files."""

    def __init__(
        self,
        config: CompressionConfig,
        foundation: Foundation,
        rows: Sequence[Row],
        examples: Sequence[Example],
    ):
        self._config, self._foundation = config, foundation
        self._rows, self._examples = rows, examples

    def texts(self, answers: Answers) -> list[str]:
        """Answers as text."""
        decode = self._foundation.tokenizer.decode
        return [str(decode(ids, skip_special_tokens=True)).strip() for ids in answers.ids]

    def scores(self, answers: Answers) -> Scores:
        """F1 and EM with their intervals."""
        samples = self._config.evaluation.bootstrap_samples
        return score(self.texts(answers), self._examples, samples, self._config.seed)

    def headline(self, answers: Answers) -> dict[str, float]:
        """F1 and EM alone."""
        scores = self.scores(answers)
        return {"f1": round(scores.f1, 4), "em": round(scores.em, 4)}

    def untuned_baseline(self) -> Scores | None:
        """The base itself with the whole context, by the same code; None where it is switched off."""
        if not self._config.evaluation.baseline:
            return None
        config = untuned_full_context(self._config)
        graphdef, trainable, frozen = split_model(model_on(config, self._foundation))
        answerer = make_answerer(config, self._foundation, graphdef)
        return self.scores(answerer(trainable, frozen, self._rows, "untuned full context"))

    def metrics(self, answers: Answers, baseline: Scores | None) -> dict[str, Any]:
        """Scores, ratios, parameters and times, as in `metrics.json`."""
        config = self._config
        scores = self.scores(answers)
        return {
            "architecture": config.architecture,
            "target_length": config.target_length if compresses(config) else None,
            "final_f1": scores.f1,
            "final_f1_interval": list(scores.f1_interval),
            "final_em": scores.em,
            "final_em_interval": list(scores.em_interval),
            "baseline_f1": baseline and baseline.f1,
            "baseline_f1_interval": baseline and list(baseline.f1_interval),
            "baseline_em": baseline and baseline.em,
            "compression_ratio": nominal_ratio(config),
            "effective_compression_ratio": self._effective_ratio(answers),
            **self._parameters(),
            "wall_time_per_sample_s": {
                "compress": answers.compress_s / scores.n,
                "answer": answers.answer_s / scores.n,
            },
            "n_examples": scores.n,
            "seed": config.seed,
            "base_model": config.model.name,
            "device": device_name(),
            "packages": versions(),
        }

    def write(
        self, rundir: Path, state: TrainState, answers: Answers, baseline: Scores | None
    ) -> dict[str, Any]:
        """Writes `metrics.json` and `sample_predictions.json`; returns the metrics."""
        metrics = {**self.metrics(answers, baseline), "steps": int(state.step)}
        limit = self._config.evaluation.sample_predictions
        write_json(rundir / "metrics.json", metrics)
        write_json(
            rundir / "sample_predictions.json",
            prediction_rows(self.texts(answers), self._examples, limit),
        )
        return metrics

    def _effective_ratio(self, answers: Answers) -> float | None:
        """Real context tokens over slots used, over all rows; None where nothing is read."""
        tokens = sum(len(row.context_ids) for row in self._rows)
        slots = int(np.sum(answers.slots))
        return tokens / slots if slots else None

    def _parameters(self) -> dict[str, int]:
        counts = parameter_counts(abstract_model(self._config, self._foundation.source.config))
        return {
            "compressor_parameters": counts["compressor"],
            "trainable_parameters": counts["trainable"],
        }


def write_json(path: Path, value: Any) -> None:
    """Writes JSON through a temporary file, so that a reader never sees half of it."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide the numbers."""
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def device_name() -> str:
    """Kind and number of the devices of this run."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
