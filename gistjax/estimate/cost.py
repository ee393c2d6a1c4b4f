"""Steps, hours and disk of a run or a sweep, from measured step times, before anything starts.

`step_times.json` holds the measurements; `positions` are those of a row that go through the base,
in encoder and decoder. A configuration is compared with the measurement nearest in positions, and
its time scaled by them. Runs on several GPUs take their share of the time. Both are assumptions.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gistjax.compress.budget import Budget
from gistjax.config import TEXT_LOSSES, CompressionConfig
from gistjax.data.batching import PlanSettings, total_steps
from gistjax.data.dataset import load_dataset
from gistjax.data.tasks import told_of
from gistjax.estimate.memory import GIB, rows_of_context

MEASURED = Path(__file__).parent / "step_times.json"
QUESTIONS_PER_PARAGRAPH = 4.6  # SQuAD v1.1: 87,599 training questions on 18,896 paragraphs
DECODED = 16  # tokens: the longest gold answer of a batch
START_S = 300.0  # to load and compile: assumed, not measured

Measurement = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """Cost of one run on one GPU."""

    steps: int | None  # None where the number of rows is not known
    train_s: float | None  # None also where the base was never measured
    evaluate_s: float | None
    disk_gib: float

    def hours(self, gpus: float) -> float | None:
        """Return the hours on so many GPUs, the start included."""
        if self.train_s is None or self.evaluate_s is None:
            return None
        return (START_S + (self.train_s + self.evaluate_s) / max(gpus, 1)) / 3600


def measurements() -> list[dict[str, Any]]:
    """Load the measured step times, one for each base and number of rows."""
    return list(json.loads(MEASURED.read_text(encoding="utf-8")))


_local_dataset = lru_cache(maxsize=1)(load_dataset)  # the runs of a sweep share their questions


def tasks_of(config: CompressionConfig) -> dict[str, dict[str, float]]:
    """Return the weight of each task of a mixture and, of local data, its numbers of questions."""
    found: dict[str, dict[str, float]] = {}
    for name, weight in config.data.mixture.items():
        found[name] = {"weight": weight}
        if config.data.path:
            part = _local_dataset(config.data, config.seed).parts[name]
            found[name] |= {"train": len(part.train), "validation": len(part.validation)}
    return found


def _contexts(config: CompressionConfig) -> float | None:
    """Contexts of an epoch of questions, each counted as often as its questions fill rows.

    Raises:
        DataError: naming a task of a mixture that has fewer than one step takes.
    """
    data = config.data
    if data.path:
        dataset, contexts = _local_dataset(data, config.seed), 0
        for name, part in (dataset.parts or {"": dataset}).items():
            by_context = Counter(example.context for example in part.train)
            own = sum(math.ceil(n / data.questions_per_context) for n in by_context.values())
            contexts += own
            if name and data.train_examples:
                with told_of(name):
                    PlanSettings.of(config).check_enough(own)
        return contexts
    shared = min(data.questions_per_context, QUESTIONS_PER_PARAGRAPH)
    return None if data.train_examples < 0 else _of_the_hub(config, "train") / shared


def _of_the_hub(config: CompressionConfig, split: str) -> int:
    """Return the number of questions asked for of all tasks, as if the hub had them all."""
    number: int = getattr(config.data, f"{split}_examples")
    return len(config.data.task_names) * number


def _questions_to_answer(config: CompressionConfig) -> int | None:
    if config.data.path:
        return len(_local_dataset(config.data, config.seed).validation)
    return None if config.data.validation_examples < 0 else _of_the_hub(config, "validation")


def steps_of(config: CompressionConfig) -> int | None:
    """Return the optimizer steps on one device; None where the number of rows is not known.

    Local questions are counted. Of those on the hub, as many share a context as in SQuAD.

    Raises:
        DataError: if a local data set cannot be read, or there are fewer rows than one step takes.
    """
    tasks = [task for task in TEXT_LOSSES if config.loss_weights.get(task)]
    contexts = _contexts(config)
    if contexts is None or (tasks and config.text.chunks < 0):
        return config.max_steps if config.max_steps >= 0 else None
    most: float = contexts if config.data.path else _of_the_hub(config, "train")  # none shares one
    if tasks:
        rows_of_a_chunk = sum(getattr(config.text, task) for task in tasks)
        units = config.text.chunks * math.ceil(rows_of_a_chunk / config.data.questions_per_context)
        contexts, most = contexts + units, most + units
    PlanSettings.of(config).check_enough(most)
    per_step = config.batch_size * config.accumulation
    an_epoch = contexts // per_step if config.data.path else contexts / per_step
    return total_steps(config.epochs, an_epoch, config.max_steps)


def cost_of(config: CompressionConfig, trainable: int, measured: Sequence[Measurement]) -> Cost:
    """Estimate what a run takes on one GPU of the measured kind.

    Args:
        trainable: number of trained parameters.
        measured: measurements of any base.
    """
    steps = steps_of(config)
    # Checkpoints of parameters and two moments, in fp32: two are kept and one is being written.
    # Beside them the exported parameters.
    disk_gib = trainable * 4 * (3 * 3 + 1) / GIB
    own = [m for m in measured if m["base_model"] == config.model.known_as]
    questions = _questions_to_answer(config)
    if not own or steps is None or questions is None:
        return Cost(steps, None, None, disk_gib)
    near = nearest(config, own)
    train_s = steps * config.accumulation * _micro_step_s(config, near) + _views_s(config, near)
    full, compressed = near["answer_32_full_context_s"], near["answer_32_s"]
    answer = full if config.architecture == "none" else compressed
    answer += full if config.evaluation.baseline else 0
    answer += compressed if config.evaluation.shuffled else 0
    return Cost(steps, train_s, questions / 32 * answer, disk_gib)


def nearest(config: CompressionConfig, measured: Sequence[Measurement]) -> Measurement:
    """Return the measurement whose micro-step is nearest in size."""

    def distance(m: Measurement) -> float:
        ours = config.batch_size * positions_of(config, m["layers"])
        return abs(math.log(ours / (m["rows"] * m["positions"])))

    return min(measured, key=distance)


def positions_of(config: CompressionConfig, layers: int) -> float:
    """Positions of a row that go through the base forward and backward.

    Those that pass through some of its layers, or forward only, count in part.
    """
    context, tokens = config.data.context_tokens, max(config.data.question_buckets)
    positions = float(
        Budget.of(config).decoder_positions(context) + tokens * rows_of_context(config)
    )
    if config.encoder.kind != "embeddings":
        share = 1.0 if config.encoder.layers < 0 else config.encoder.layers / layers
        backward = 1.0 if config.encoder.kind == "lora" else 0.5  # of frozen states no gradient
        positions += backward * context * share
    return positions


def _position_s(near: Measurement) -> float:
    """Seconds of one position, forward and backward."""
    return float(near["step_s"] / (near["rows"] * near["positions"]))


def _micro_step_s(config: CompressionConfig, near: Measurement) -> float:
    seconds = config.batch_size * positions_of(config, near["layers"]) * _position_s(near)
    if config.loss_weights.get("generation"):
        rows = config.batch_size * rows_of_context(config)
        seconds += DECODED * (near["decode_token_s"] + rows * _position_s(near))
    return float(seconds)


def _views_s(config: CompressionConfig, near: Measurement) -> float:
    """Seconds of the contrastive targets: each context once, forward through the first layers."""
    if not config.loss_weights.get("contrastive"):
        return 0.0
    positions = config.data.train_examples * config.data.context_tokens
    share = config.contrastive_layers / float(near["layers"])
    return positions * _position_s(near) / 2 * share


def makespan(hours: Sequence[float], lanes: int) -> float:
    """Hours until all runs are done, in their order, each in the lane that is free first."""
    free = [0.0] * max(min(lanes, len(hours)), 1)
    for time in hours:
        heapq.heappush(free, heapq.heappop(free) + time)
    return max(free)


def project(costs: Mapping[str, Cost], gpus: int, gpus_per_run: float) -> dict[str, Any]:
    """Return a sweep's hours, GPU hours and disk on so many GPUs.

    Hours are None where a run's base was never measured.
    """
    hours = [cost.hours(gpus_per_run) for cost in costs.values()]
    known = [time for time in hours if time is not None]
    lanes = int(gpus / gpus_per_run) if gpus_per_run else 1
    complete = len(known) == len(hours)
    return {
        "gpus": gpus,
        "gpus_per_run": gpus_per_run,
        "runs_at_a_time": min(lanes, len(hours)),
        "hours": round(makespan(known, lanes), 2) if complete and lanes else None,
        "gpu_hours": round(sum(known) * gpus_per_run, 2) if complete else None,
        "disk_gib": round(sum(cost.disk_gib for cost in costs.values()), 1),
    }
