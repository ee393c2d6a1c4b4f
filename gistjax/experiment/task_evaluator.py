"""Evaluation of a mixture: each task by itself, with its own controls, and their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gistjax.config import CompressionConfig
from gistjax.data.example import Example, TokenizedExample
from gistjax.data.tasks import each_task
from gistjax.evaluation.kept_entries import joined_maps
from gistjax.evaluation.statistics import mean_interval
from gistjax.evaluation.treatment import Treatment
from gistjax.experiment.base import PretrainedBase
from gistjax.experiment.confidence import Confidence
from gistjax.experiment.evaluator import EvalResult, Evaluator

SHARED = (
    *("architecture", "target_length", "compression_ratio", "compressor_parameters"),
    *("trainable_parameters", "seed", "base_model", "device", "packages"),
)
"""Fields of `metrics.json` that are the same for every task."""
MEANS = ("final_f1", "final_em", "baseline_f1", "baseline_em", "closed_book_f1", "closed_book_em")


class MixtureEvaluator:
    """Answers the questions of several tasks, and scores each task apart (`Evaluator`)."""

    def __init__(
        self,
        config: CompressionConfig,
        pretrained: PretrainedBase,
        rows: list[TokenizedExample],
        examples: Sequence[Example],
        graphdef: Any,
        confidence: Confidence | None = None,
        treatment: Treatment | None = None,
    ):
        self._tokens, self._parts = dict[str, int](), dict[str, Evaluator]()
        for name, data in each_task(config.data).items():
            own = [i for i, row in enumerate(rows) if row.task == name]
            own_rows, own_examples = [rows[i] for i in own], [examples[i] for i in own]
            self._tokens[name] = sum(len(row.context_ids) for row in own_rows)
            own_config = config.replace(data=data)
            self._parts[name] = Evaluator(
                own_config, pretrained, own_rows, own_examples, graphdef, confidence, treatment
            )

    def headline(self, trainable: Any, frozen: Any) -> dict[str, float]:
        """Return the means of F1 and EM over the tasks, and the F1 of each."""
        found = {name: part.headline(trainable, frozen) for name, part in self._parts.items()}
        means = {
            key: round(statistics.fmean(one[key] for one in found.values()), 4)
            for key in ("f1", "em")
        }
        return means | {f"f1_{name}": one["f1"] for name, one in found.items()}

    def measure(self, trainable: Any, frozen: Any) -> EvalResult:
        """Return a block for each task, their means, and the predictions of all."""
        results = {
            name: part.measure(trainable, frozen, of_mixture=True)
            for name, part in self._parts.items()
        }
        blocks = {name: result.metrics for name, result in results.items()}
        first = next(iter(blocks.values()))
        shared = {key: first[key] for key in SHARED}
        tasks = {
            name: {key: value for key, value in block.items() if key not in SHARED}
            for name, block in blocks.items()
        }
        metrics = {**shared, **means(tasks), **self._costs(tasks), "tasks": tasks}
        predictions = [
            {"task": name, **row} for name, result in results.items() for row in result.predictions
        ]
        slots = [context for result in results.values() for context in result.slot_attention]
        kept = joined_maps([result.kept_entries for result in results.values()])
        return EvalResult(metrics, predictions, slots, kept)

    def _costs(self, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the ratio and the seconds a question over all tasks."""
        n = sum(block["n_examples"] for block in tasks.values())
        ratios = {name: block["effective_compression_ratio"] for name, block in tasks.items()}
        ratio = None
        if all(ratios.values()):
            slots = sum(self._tokens[name] / ratios[name] for name in tasks)
            ratio = sum(self._tokens.values()) / slots
        seconds = {
            part: sum(b["wall_time_per_sample_s"][part] * b["n_examples"] for b in tasks.values())
            for part in ("compress", "answer")
        }
        tokens = sum(self._tokens.values())
        stored = sum(b["bytes_per_context_token"] * self._tokens[name] for name, b in tasks.items())
        return {
            "effective_compression_ratio": ratio,
            "bytes_per_context_token": stored / max(tokens, 1),
            "wall_time_per_sample_s": {part: total / n for part, total in seconds.items()},
            "n_examples": n,
        }


def means(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of the tasks' scores, each task of equal weight, with their intervals.

    `normalised_f1` is the mean over those tasks that have one: `normalised_tasks` names them.
    """
    found: dict[str, Any] = {}
    for key in (*MEANS, *(["shuffled_f1"] if _all_have(tasks, "shuffled_f1") else [])):
        scores = [block[key] for block in tasks.values()]
        is_known = all(score is not None for score in scores)
        found[key] = statistics.fmean(scores) if is_known else None
        intervals: list[Any] = [block.get(f"{key}_interval") for block in tasks.values()]
        if is_known and all(intervals):
            found[f"{key}_interval"] = list(mean_interval(scores, intervals))
    known = {name: b for name, b in tasks.items() if b["normalised_f1"] is not None}
    values = [block["normalised_f1"] for block in known.values()]
    intervals = [block["normalised_f1_interval"] for block in known.values()]
    found["normalised_f1"] = statistics.fmean(values) if known else None
    found["normalised_f1_interval"] = list(mean_interval(values, intervals)) if known else None
    found["normalised_tasks"] = list(known)
    return found


def _all_have(tasks: Mapping[str, Mapping[str, Any]], key: str) -> bool:
    return all(key in block for block in tasks.values())
