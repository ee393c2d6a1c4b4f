"""What a run writes beside its checkpoint: config, metrics, predictions."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gistjax.compress.budget import Budget
from gistjax.compress.parameters import (
    abstract_model,
    import_trainable,
    parameter_counts,
    split_model,
)
from gistjax.config import CompressionConfig
from gistjax.data.example import Buckets, Example, TokenizedExample
from gistjax.errors import CheckpointError
from gistjax.evaluation.breakdown import answer_place, answer_type, breakdown
from gistjax.evaluation.controls import shuffle_contexts
from gistjax.evaluation.diagnostics import answer_diversity, slot_similarity
from gistjax.evaluation.generate import Answers
from gistjax.evaluation.metrics import Scores, check_metrics, score
from gistjax.evaluation.slot_attention import slot_attention
from gistjax.evaluation.statistics import paired_difference
from gistjax.experiment.base import (
    PretrainedBase,
    load_pretrained,
    make_generator,
    model_on,
    select,
    untuned_full_context,
)
from gistjax.experiment.run_dir import EXPORTED
from gistjax.runtime.files import write_json
from gistjax.runtime.sharding import is_primary
from gistjax.weights.registry import KNOWN

log = logging.getLogger(__name__)

PACKAGES = ("gistjax", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
SLOT_CONTEXTS = 2
"""Contexts of which slot_attention.json shows what each slot reads."""
RESUMABLE = (
    "log_every", "checkpoint_every", "eval_every", "tensorboard", "evaluation", "on_bad_step",
)  # fmt: skip
"""Fields that may change between a run and its resumption: they do not touch what is trained."""


def claim(rundir: Path, config: CompressionConfig) -> None:
    """Checks that the run in a directory, if there is one, is this one and can go on.

    Raises:
        CheckpointError: if another configuration was trained there, or if what it takes to go on is gone.
    """
    checkpoint = rundir / "checkpoint"
    if not (rundir / "config.json").exists():
        if checkpoint.exists():
            raise CheckpointError(
                f"{checkpoint} belongs to a run whose {rundir / 'config.json'} is missing: restore it, or move "
                "the folder away to train anew."
            )
        return
    if (rundir / EXPORTED).exists() and not checkpoint.exists():
        raise CheckpointError(
            f"{rundir} holds a finished run without its {checkpoint}: restore it, or choose another --workdir to "
            "train anew."
        )
    check_same(rundir, config)


def check_same(rundir: Path, config: CompressionConfig) -> None:
    """Whether the run in a directory, unfinished or finished, is of this configuration.

    Raises:
        CheckpointError: if it is not, or its configuration is missing or damaged.
    """
    theirs = CompressionConfig.from_dict(read_config(rundir)["config"]).to_json()
    ours = config.to_json()
    changed = [
        f"{key} was {theirs[key]!r} and is {value!r}"
        for key, value in ours.items()
        if key not in RESUMABLE and theirs[key] != value
    ]
    if changed:
        raise CheckpointError(
            f"{rundir} holds a run of another configuration ({'; '.join(changed)}). "
            "Choose another --workdir, or move that folder away."
        )


def read_config(rundir: Path) -> dict[str, Any]:
    """What `write_config` wrote.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """

    def is_whole(stored: Any) -> bool:
        return isinstance(stored["config"], dict) and isinstance(stored["base_sha256"], str)

    cure = f"move {rundir} away to train anew"
    return _read(rundir / "config.json", is_whole, cure)


def read_metrics(rundir: Path) -> dict[str, Any]:
    """What `metrics.json` of a finished run holds.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """

    def is_whole(metrics: Any) -> bool:
        return isinstance(metrics, dict) and not metrics.keys().isdisjoint(
            ("final_f1_interval", "losses")
        )

    cure = "remove it, and the run ends anew from its last checkpoint"
    return _read(rundir / "metrics.json", is_whole, cure)


def _read(path: Path, is_whole: Callable[[Any], bool], cure: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        if is_whole(found):
            return found
        error: Exception | str = "something is missing in it"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as caught:
        error = caught
    raise CheckpointError(f"{path} is damaged ({error}): restore it from a copy, or {cure}.")


def check_base(rundir: Path, pretrained: PretrainedBase) -> None:
    """Makes sure that a run goes on with, or is evaluated on, the base and tokenizer that it was trained on.

    Raises:
        CheckpointError: if the base's bytes, or the tokenizer's vocabulary or template, are others.
    """
    exists = (rundir / "config.json").exists()
    stored = read_config(rundir) if exists else {}
    if stored.get("prompt_sha256") not in (None, pretrained.prompt.sha256):
        raise CheckpointError(
            f"{rundir} was trained with another tokenizer or chat template: give the base with its own "
            "tokenizer files, or another directory."
        )
    theirs = stored.get("base_sha256")
    ours = pretrained.base_sha256
    if theirs not in (None, ours):
        raise CheckpointError(
            f"{rundir} was trained on other base weights (SHA-256 {theirs[:12]}…, these are {ours[:12]}…): "
            f"give the same weights ({stored.get('base_weights')}) and dtype, or another directory.{_package(pretrained)}"
        )


def _package(pretrained: PretrainedBase) -> str:
    known = KNOWN.get(pretrained.source.name)
    if known is None or not known.install:
        return ""
    return f" Those of `{known.install}` are what the repository's runs were trained on."


def load_trained(rundir: Path, config: CompressionConfig) -> tuple[PretrainedBase, tuple[Any, ...]]:
    """A run's base, and its model as structure, trained leaves and frozen leaves.

    Raises:
        GistjaxError: if the base is not at hand or another one, or the exported compressor does not fit.
    """
    pretrained = load_pretrained(config)
    check_base(rundir, pretrained)
    graphdef, shapes, frozen = split_model(model_on(config, pretrained, seeded=False))
    return pretrained, (graphdef, import_trainable(rundir / EXPORTED, shapes), frozen)


def write_config(rundir: Path, config: CompressionConfig, pretrained: PretrainedBase) -> None:
    """Writes `config.json`: the resolved config, and all that is needed to get the same numbers."""
    found = {
        "config": config.to_json(),
        "base_weights": pretrained.source.describe(),
        "base_sha256": pretrained.base_sha256,
        "prompt_sha256": pretrained.prompt.sha256,
        "packages": versions(),
        "device": device_name(),
        "mesh": dict(pretrained.mesh.shape),
    }
    if is_primary():
        write_json(rundir / "config.json", found)


def provenance(config: CompressionConfig) -> dict[str, str]:
    """The metadata of an exported compressor."""
    return {"format": "gistjax", "config": json.dumps(config.to_json())}


@dataclass(frozen=True)
class EvalResult:
    """What `metrics.json`, `predictions.json` and `slot_attention.json` hold."""

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]  # one for every question
    slot_attention: list[dict[str, Any]]  # of some contexts; empty without slots

    def write(self, rundir: Path, steps: int, samples: int) -> dict[str, Any]:
        """Writes the files, and some of the predictions to look at; returns the metrics. `metrics.json` is the last: a run
        that has it counts as finished.
        """
        metrics = {**self.metrics, "steps": steps}
        if not is_primary():
            return metrics
        if self.slot_attention:
            write_json(rundir / "slot_attention.json", self.slot_attention, indent=None)
        write_json(rundir / "predictions.json", self.predictions)
        write_json(rundir / "sample_predictions.json", self.predictions[:samples])
        write_json(rundir / "metrics.json", metrics)
        return metrics


def write_untested(rundir: Path, config: CompressionConfig, steps: int) -> dict[str, Any]:
    """`metrics.json` of a run without validation questions: the last losses are all there is to tell."""
    log_file = rundir / "metrics.jsonl"  # none where no step was made
    lines = log_file.read_text(encoding="utf-8").splitlines() if log_file.exists() else []
    metrics = {
        "architecture": config.architecture,
        "losses": json.loads(lines[-1]) if lines else {},
        "steps": steps,
        "seed": config.seed,
        "base_model": config.model.name,
        "device": device_name(),
        "packages": versions(),
    }
    if is_primary():
        write_json(rundir / "metrics.json", metrics)
    return metrics


class Evaluator:
    """Answers the questions of a split and turns the answers into scores.

    Args:
        rows: the questions with their whole contexts.
        examples: the same questions with their gold answers.
        graphdef: the model's structure.
    """

    def __init__(
        self,
        config: CompressionConfig,
        pretrained: PretrainedBase,
        rows: list[TokenizedExample],
        examples: Sequence[Example],
        graphdef: Any,
    ):
        self._config, self._foundation, self._graphdef = config, pretrained, graphdef
        check_metrics(examples)
        self._rows, self._examples = rows, examples
        self._read = select(config, pretrained, rows)
        self._generator = make_generator(config, pretrained, graphdef)

    def headline(self, trainable: Any, frozen: Any) -> dict[str, float]:
        """F1 and EM alone, on the way."""
        scores = self._score(self._generator(trainable, frozen, self._read, "validating"))
        return {"f1": round(scores.f1, 4), "em": round(scores.em, 4)}

    def measure(self, trainable: Any, frozen: Any) -> EvalResult:
        """Scores, what they hang on, ratios, parameters and times."""
        answers = self._generator(trainable, frozen, self._read, "answering")
        scores = self._score(answers)
        predictions = self._predictions(answers, scores)
        contexts = self._contexts(trainable, frozen, scores) if self._config.compresses else {}
        metrics = {
            **self._scores(scores, self._untuned_baseline()),
            **self._costs(answers, scores.n),
            **contexts,
            "by_type": self._breakdown(scores, [row["type"] for row in predictions]),
            "by_place": self._breakdown(scores, [row["place"] for row in predictions]),
            "answer_diversity": answer_diversity(
                [row["prediction"] for row in predictions],
                [example.answers[0] for example in self._examples],
            ),
            "n_examples": scores.n,
            "seed": self._config.seed,
            "base_model": self._config.model.name,
            "device": device_name(),
            "packages": versions(),
        }
        return EvalResult(metrics, predictions, self._slot_attention(trainable, frozen))

    def _slot_attention(self, trainable: Any, frozen: Any) -> list[dict[str, Any]]:
        if not self._config.compresses:
            return []
        return slot_attention(
            self._graphdef, trainable, frozen, self._read, self._foundation.tokenizer,
            self._foundation.mesh, SLOT_CONTEXTS, Buckets.of(self._config.data),
        )  # fmt: skip

    def _score(self, answers: Answers) -> Scores:
        samples = self._config.evaluation.bootstrap_samples
        return score(self._texts(answers), self._examples, samples, self._config.seed)

    def _texts(self, answers: Answers) -> list[str]:
        decode = self._foundation.tokenizer.decode
        return [str(decode(ids, skip_special_tokens=True)).strip() for ids in answers.ids]

    def _untuned_baseline(self) -> Scores | None:
        """The base itself with the whole context, by the same code; None where it is switched off."""
        if not self._config.evaluation.baseline:
            return None
        config = untuned_full_context(self._config)
        graphdef, trainable, frozen = split_model(model_on(config, self._foundation))
        generator = make_generator(config, self._foundation, graphdef)
        return self._score(generator(trainable, frozen, self._rows, "untuned full context"))

    def _scores(self, scores: Scores, baseline: Scores | None) -> dict[str, Any]:
        return {
            "architecture": self._config.architecture,
            "target_length": self._config.target_length if self._config.compresses else None,
            "final_f1": scores.f1,
            "final_f1_interval": list(scores.f1_interval),
            "final_em": scores.em,
            "final_em_interval": list(scores.em_interval),
            "baseline_f1": baseline and baseline.f1,
            "baseline_f1_interval": baseline and list(baseline.f1_interval),
            "baseline_em": baseline and baseline.em,
        }

    def _costs(self, answers: Answers, n: int) -> dict[str, Any]:
        counts = parameter_counts(abstract_model(self._config, self._foundation.source.config))
        tokens, slots = sum(len(row.context_ids) for row in self._rows), int(np.sum(answers.slots))
        return {
            "compression_ratio": Budget.of(self._config).nominal_ratio,
            "effective_compression_ratio": tokens / slots if slots else None,
            "compressor_parameters": counts["compressor"],
            "trainable_parameters": counts["trainable"],
            "wall_time_per_sample_s": {
                "compress": answers.compress_s / n,
                "answer": answers.answer_s / n,
            },
        }

    def _contexts(self, trainable: Any, frozen: Any, scores: Scores) -> dict[str, Any]:
        """Whether slots depend on their context: how alike they are, and the score with those of another one."""
        slots_BxMxD, slots_B = self._generator.slots(trainable, frozen, self._read)
        alike = {"slot_similarity": slot_similarity(slots_BxMxD, slots_B)}
        if not self._config.evaluation.shuffled:
            return alike
        wrong = self._score(
            self._generator(trainable, frozen, shuffle_contexts(self._read), "wrong contexts")
        )
        gap = paired_difference(
            scores.f1_N, wrong.f1_N, scores.clusters_N,
            self._config.evaluation.bootstrap_samples, self._config.seed,
        )  # fmt: skip
        shuffled = {
            "shuffled_f1": wrong.f1,
            "shuffled_gap": gap.mean,
            "shuffled_gap_interval": list(gap.interval),
        }
        return {**alike, **shuffled}

    def _breakdown(self, scores: Scores, groups: Sequence[Any]) -> dict[str, Any]:
        samples = self._config.evaluation.bootstrap_samples
        return breakdown(scores.f1_N, groups, scores.clusters_N, samples, self._config.seed)

    def _predictions(self, answers: Answers, scores: Scores) -> list[dict[str, Any]]:
        decode = self._foundation.tokenizer.decode
        contexts = {row.context_id: str(decode(row.context_ids)) for row in self._rows}
        return [
            {
                "id": example.id,
                "context_id": example.context_id,
                "question": example.question,
                "prediction": text,
                "answers": list(example.answers),
                "type": answer_type(example.looked_up),
                "place": answer_place(contexts[example.context_id], example.looked_up),
                "f1": round(float(f1), 4),
                "em": float(em),
            }
            for example, text, f1, em in zip(
                self._examples, self._texts(answers), scores.f1_N, scores.em_N, strict=True
            )
        ]


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide the numbers."""
    installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def device_name() -> str:
    """Kind and number of the devices of this run."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
