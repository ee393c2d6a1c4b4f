"""What a run or a sweep will take, from measured step times: steps, hours and disk, before anything starts.

`step_times.json` holds what was measured, a line each: `positions` are those of a row that go through the base, of
encoder and decoder. A config is compared with the line nearest in positions and scaled by them, and runs on several GPUs take
their share of the time: both are assumptions.
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

import jax

from gistjax.config import TEXT_LOSSES, CompressionConfig
from gistjax.data.dataset import load_dataset
from gistjax.estimate.planning import dry_run, memory_positions
from gistjax.runtime.devices import memory_limit
from gistjax.weights.registry import Source

MEASURED = Path(__file__).parent / "step_times.json"
QUESTIONS_OF_A_PARAGRAPH = 4.6  # SQuAD v1.1: 87,599 training questions on 18,896 paragraphs
DECODED = 16  # tokens: the longest gold answer of a batch, as in results/speed.md
START_S = 300.0  # to load and compile: assumed, not measured
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Of one run on one GPU."""

    steps: int | None  # None where nobody knows how many rows -1 are
    train_s: float | None  # None also where the base was never measured
    evaluate_s: float | None
    disk_gib: float

    def hours(self, gpus: float) -> float | None:
        """On so many GPUs, the start included."""
        if self.train_s is None or self.evaluate_s is None:
            return None
        return (START_S + (self.train_s + self.evaluate_s) / max(gpus, 1)) / 3600


_local_dataset = lru_cache(maxsize=1)(load_dataset)  # the runs of a sweep share their questions


def _contexts(config: CompressionConfig) -> float | None:
    """Contexts of an epoch of questions, one as often as its questions fill rows: counted where the data set is local."""
    data = config.data
    if data.path:
        by_context = Counter(e.context for e in _local_dataset(data, config.seed).train)
        return sum(math.ceil(n / data.questions_per_context) for n in by_context.values())
    shared = min(data.questions_per_context, QUESTIONS_OF_A_PARAGRAPH)
    return None if data.train_examples < 0 else data.train_examples / shared


def _questions_to_answer(config: CompressionConfig) -> int | None:
    if config.data.path:
        return len(_local_dataset(config.data, config.seed).validation)
    return None if config.data.validation_examples < 0 else config.data.validation_examples


def steps_of(config: CompressionConfig) -> int | None:
    """Optimizer steps on one device; where a context is read once for all its questions and the data set is on the hub, as
    in SQuAD on average. At most `max_steps` where nobody knows how many rows -1 are; None if that is not set either.

    Raises:
        DataError: if a local data set cannot be read.
    """
    tasks = [task for task in TEXT_LOSSES if config.loss_weights.get(task)]
    contexts = _contexts(config)
    if contexts is None or (tasks and config.text.chunks < 0):
        return config.max_steps if config.max_steps >= 0 else None
    if tasks:
        rows_of_a_chunk = sum(getattr(config.text, task) for task in tasks)
        contexts += config.text.chunks * math.ceil(
            rows_of_a_chunk / config.data.questions_per_context
        )
    per_step = config.batch_size * config.accumulation
    an_epoch = contexts // per_step if config.data.path else contexts / per_step
    steps = int(config.epochs * an_epoch)
    return steps if config.max_steps < 0 else min(steps, config.max_steps)


def cost_of(config: CompressionConfig, trainable: int, measured: Sequence[Mapping[str, Any]]) -> Cost:  # fmt: skip
    """What a run takes on one GPU of the measured kind.

    Args:
        trainable: its trained parameters.
    """
    steps = steps_of(config)
    # Checkpoints of parameters and two moments, in fp32: two are kept and one is being written. And the exported leaves.
    disk_gib = trainable * 4 * (3 * 3 + 1) / GIB
    own = [m for m in measured if m["base_model"] == config.model.name]
    questions = _questions_to_answer(config)
    if not own or steps is None or questions is None:
        return Cost(steps, None, None, disk_gib)
    near = nearest(config, own)
    train_s = steps * config.accumulation * _micro_step_s(config, near) + _views_s(config, near)
    answer = near["answer_32_s"] if config.architecture != "none" else near["answer_32_full_context_s"]  # fmt: skip
    answer += near["answer_32_full_context_s"] if config.evaluation.baseline else 0
    answer += near["answer_32_s"] if config.evaluation.shuffled else 0
    return Cost(steps, train_s, questions / 32 * answer, disk_gib)


def nearest(config: CompressionConfig, measured: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The measurement whose micro-step is nearest in size."""

    def distance(m: Mapping[str, Any]) -> float:
        ours = config.batch_size * positions_of(config, m["layers"])
        return abs(math.log(ours / (m["rows"] * m["positions"])))

    return min(measured, key=distance)


def positions_of(config: CompressionConfig, layers: int) -> float:
    """Positions of a row that go through the base forward and backward; what passes a part of it counts in part."""
    context, tokens = config.data.context_tokens, max(config.data.question_buckets)
    positions = float(
        memory_positions(config, context) + tokens * config.data.questions_per_context
    )
    if config.encoder.kind != "embeddings":
        share = 1.0 if config.encoder.layers < 0 else config.encoder.layers / layers
        backward = 1.0 if config.encoder.kind == "lora" else 0.5  # of frozen states no gradient
        positions += backward * context * share
    return positions


def _position_s(near: Mapping[str, Any]) -> float:
    """Seconds of one position, forward and backward."""
    return float(near["step_s"]) / (near["rows"] * near["positions"])


def _micro_step_s(config: CompressionConfig, near: Mapping[str, Any]) -> float:
    seconds = config.batch_size * positions_of(config, near["layers"]) * _position_s(near)
    if config.loss_weights.get("generation"):
        rows = config.batch_size * config.data.questions_per_context
        seconds += DECODED * (near["decode_token_s"] + rows * _position_s(near))
    return float(seconds)


def _views_s(config: CompressionConfig, near: Mapping[str, Any]) -> float:
    """The contrastive loss's targets, once for each context, forward through the first layers."""
    if not config.loss_weights.get("contrastive"):
        return 0.0
    positions = config.data.train_examples * config.data.context_tokens
    return positions * _position_s(near) / 2 * config.contrastive_layers / near["layers"]


def plan(config: CompressionConfig, source: Source) -> dict[str, Any]:
    """What a run will need, beside what there is: `planning.dry_run`, the device's memory, steps, hours and disk.

    `hours` are on one of the GPUs `hours_on`, where steps were measured; None where the base was never measured, or
    nobody knows how many examples a count of -1 is. A CPU has no memory of its own to compare with.
    """
    found = dry_run(config, source)
    device = jax.devices()[0]
    limit = memory_limit()
    own = [m for m in measurements() if m["base_model"] == config.model.name]
    cost = cost_of(config, found["trainable_parameters"], own)
    hours = cost.hours(1)
    return {
        **found,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "device_memory_gib": limit and round(limit / GIB, 3),
        "fits": limit and found["memory_estimate_gib"]["total"] * GIB <= limit,
        "steps": cost.steps,
        "hours": hours and round(hours, 2),
        "hours_on": nearest(config, own)["device"] if own else None,
        "disk_gib": round(cost.disk_gib, 3),
    }


def for_people(found: Mapping[str, Any]) -> str:
    """A plan in a few lines."""
    counts = {name: f"{count:,}" for name, count in found["parameters"].items()}
    memory = dict(found["memory_estimate_gib"])
    total = memory.pop("total")
    limit, steps = found["device_memory_gib"], found["steps"]
    verdict = {True: "which fits", False: "which does not fit", None: "as on a GPU"}[found["fits"]]
    there = f"{limit:,.2f} GiB each" if limit else "no GPU"
    time = "steps unknown: as many as the data set has" if steps is None else f"{steps:,} steps"
    if found["hours"]:
        time += f", about {found['hours']:,.2f} h on one {found['hours_on']}, loading and evaluation included"
    return "\n".join(
        f"{name:11} {text}"
        for name, text in (
            ("base", f"{found['base_model']} ({found['weights']})"),
            ("parameters", ", ".join(f"{name} {count}" for name, count in counts.items())),
            ("memory", " + ".join(f"{name} {gib:,.2f}" for name, gib in memory.items()) + f" = {total:,.2f} GiB, {verdict}"),
            ("device", f"{found['device']}, {there}"),
            ("time", time),
            ("disk", f"{found['disk_gib']:,.2f} GiB of checkpoints and export"),
        )
    )  # fmt: skip


def makespan(hours: Sequence[float], lanes: int) -> float:
    """Hours until all runs are done, in their order, each in the lane that is free first."""
    free = [0.0] * max(min(lanes, len(hours)), 1)
    for time in hours:
        heapq.heappush(free, heapq.heappop(free) + time)
    return max(free)


def project(costs: Mapping[str, Cost], gpus: int, gpus_per_run: float) -> dict[str, Any]:
    """The whole sweep on so many GPUs; hours are None where a run's base was never measured."""
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


def measurements() -> list[dict[str, Any]]:
    """What was measured, by base and rows; nothing outside of a checkout of the repository."""
    if not MEASURED.is_file():
        return []
    return list(json.loads(MEASURED.read_text(encoding="utf-8")))
