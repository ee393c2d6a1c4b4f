"""The training loop: step after step from where the last checkpoint ended, logging and saving on the way."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gistjax.config import CompressionConfig
from gistjax.data.batches import Batch
from gistjax.errors import TrainingError
from gistjax.sharding import put_batch
from gistjax.training.checkpoint import Checkpointer
from gistjax.training.step import TrainState, TrainStep

log = logging.getLogger(__name__)


class Plan(Protocol):
    """Which rows a step sees: a pure function of the step."""

    def batch(self, step: int) -> Batch:
        """The micro-batches `[K, B, …]` of an optimizer step, as host arrays."""


class MetricsLog:
    """`metrics.jsonl`: one line a logged step, each step once, also after a resume."""

    def __init__(self, path: Path, first_step: int):
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a line cut short by a kill: its step will be run and written again
                if row["step"] <= first_step:
                    kept.append(line)
        path.write_text("".join(line + "\n" for line in kept))
        self._path = path

    def write(self, row: dict[str, Any]) -> None:
        """Appends a line."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def train(
    state: TrainState,
    frozen: Any,
    train_step: TrainStep,
    plan: Plan,
    total_steps: int,
    checkpointer: Checkpointer,
    metrics: MetricsLog,
    config: CompressionConfig,
    mesh: Mesh,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    least_seconds: Callable[[Batch], float] | None = None,
) -> TrainState:
    """Trains from `state.step` to `total_steps`.

    Args:
        evaluate: scores the model on the way, each `config.eval_every` steps.
        least_seconds: that a batch's step takes at the devices' peak, where it is known; the log then has its share (MFU).

    Raises:
        TrainingError: if the loss is not finite; the last checkpoint stays.
    """
    start = int(state.step)
    meter = Meter(start, least_seconds)
    bar = tqdm(total=total_steps, initial=start, unit="step", disable=None, dynamic_ncols=True)
    with bar, logging_redirect_tqdm():
        for step in range(start + 1, total_steps + 1):
            batch = plan.batch(step - 1)
            with jax.transfer_guard("disallow"):
                state, losses = train_step(state, frozen, put_batch(batch, mesh, leading=1))
            meter.count(batch)
            if step == start + 1 or step % config.log_every == 0 or step == total_steps:
                row = {"step": step, **_fetch(losses, step), **meter.read(step)}
                metrics.write(row)
                bar.set_postfix_str(_postfix(row))
                if bar.disable:
                    log.info("%s", _line(row, total_steps))
            bar.update()
            if step % config.checkpoint_every == 0 or step == total_steps:
                checkpointer.save(step, state)
            if evaluate and config.eval_every > 0 and step % config.eval_every == 0:
                scores = evaluate(state)
                metrics.write({"step": step, **scores})
                log.info("step %d: %s", step, scores)
                meter = Meter(step, least_seconds)
    return state


class Meter:
    """Throughput since the last reading. The first step, which compiles, is not counted."""

    def __init__(self, step: int, least_seconds: Callable[[Batch], float] | None = None):
        self._step, self._time, self._least_seconds = step, time.perf_counter(), least_seconds
        self._examples, self._tokens, self._least = 0, 0, 0.0

    def count(self, batch: Batch) -> None:
        """Adds a step's examples and real tokens."""
        self._examples += int((batch.answer_length_B > 0).sum())
        lengths = (batch.context_length_E, batch.question_length_B, batch.answer_length_B)
        self._tokens += int(sum(length.sum() for length in lengths))
        if self._least_seconds:
            self._least += self._least_seconds(batch)

    def read(self, step: int) -> dict[str, float]:
        """Rates since the last reading, then starts anew."""
        now = time.perf_counter()
        seconds = max(now - self._time, 1e-9)
        rates = {
            "step_s": round(seconds / max(step - self._step, 1), 5),
            "examples_per_s": round(self._examples / seconds, 2),
            "tokens_per_s": round(self._tokens / seconds, 1),
        }
        if self._least_seconds:
            rates["mfu"] = round(self._least / seconds, 4)
        self._step, self._time, self._examples, self._tokens, self._least = step, now, 0, 0, 0.0
        return rates


def _fetch(losses: dict[str, jax.Array], step: int) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(losses).items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise TrainingError(
            f"the loss is not finite at step {step}: {values}. Lower --config.optimizer.lora_lr and "
            "--config.optimizer.compressor_lr, or train with --config.model.dtype=float32."
        )
    return {name: round(value, 6) for name, value in values.items()}


def _postfix(row: dict[str, Any]) -> str:
    mfu = f", MFU {row['mfu']:.0%}" if "mfu" in row else ""
    return f"loss {row['loss']:.3f}, {row['examples_per_s']:.0f} examples/s, {row['tokens_per_s']:.0f} tokens/s{mfu}"


def _line(row: dict[str, Any], total_steps: int) -> str:
    left = (total_steps - row["step"]) * row["step_s"] / 60
    rest = f"{left:.1f} min left" if row["step"] > 1 else "compiled"
    losses = ", ".join(
        f"{name} {row[name]:.4f}" for name in row if name not in ("step", "step_s", "tokens_per_s")
    )
    return f"step {row['step']}/{total_steps}: {losses}, {rest}"
