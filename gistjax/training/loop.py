"""The training loop: steps from the last checkpoint on, with log, checkpoints and signals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gistjax.config import CompressionConfig
from gistjax.data.example import OBJECTIVES, Batch
from gistjax.errors import TrainingError
from gistjax.runtime.sharding import any_process, put_batch, to_host
from gistjax.runtime.signals import StopSignals
from gistjax.training.checkpoint import Checkpointer
from gistjax.training.losses import OBJECTIVE_OF
from gistjax.training.metrics_log import MetricsLog
from gistjax.training.step import Health, TrainState, TrainStep

log = logging.getLogger(__name__)

MAX_BAD_IN_A_ROW = 20
"""If bad steps are skipped: so many one after another are no accident."""


class Plan(Protocol):
    """The rows that each step sees: a pure function of the step."""

    total_steps: int

    def batch(self, step: int) -> Batch:
        """Return the micro-batches `[K, B, …]` of an optimizer step, as host arrays."""


@dataclass(frozen=True)
class Loop:
    """The parts of a training that stay the same from step to step."""

    config: CompressionConfig
    mesh: Mesh
    plan: Plan
    train_step: TrainStep
    checkpointer: Checkpointer
    metrics: MetricsLog
    stop: StopSignals
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None
    """Scores (trainable, frozen) during training, every `config.eval_every` steps."""
    least_seconds: Callable[[Batch], float] | None = None
    """Time of a batch's step at the devices' peak, if known; the log then has its share (MFU)."""
    task: Callable[[int], str] | None = None
    """The task that a step, counted from 0, has rows of, in a mixture; the log then names it."""


def train(state: TrainState, frozen: Any, loop: Loop) -> TrainState:
    """Train from `state.step` to the plan's last step, or until a signal asks to stop.

    The lines of a step are written before its checkpoint, so that none is missing after a resume.

    Raises:
        TrainingError: at a bad step, as `config.on_bad_step` says; the last checkpoint stays.
        StorageError: if log or checkpoint cannot be written; the last checkpoint stays.
    """
    config, start, total = loop.config, int(state.step), loop.plan.total_steps
    meter = Meter(start, loop.least_seconds)
    bar = tqdm(total=total, initial=start, unit="step", disable=None, dynamic_ncols=True)
    with bar, logging_redirect_tqdm():
        for step in range(start + 1, total + 1):
            batch = loop.plan.batch(step - 1)
            # Only the batch goes to the devices: anything else that did would cost time in silence
            with jax.transfer_guard("disallow"):
                state, losses = loop.train_step(
                    state, frozen, put_batch(batch, loop.mesh, leading=1)
                )
            meter.count(batch)
            stops = any_process(
                loop.stop.requested
            )  # read once: a later signal is for the next step
            saves = step % config.checkpoint_every == 0 or step == total or stops
            logs = step == 1 or step % config.log_every == 0 or step == total
            if logs or saves:
                check_health(state.health, config)
                loop.checkpointer.check()
            if logs:
                counts: dict[str, Any] = {"step": step, "total_steps": total}
                if loop.task:
                    counts["task"] = loop.task(step - 1)
                row = {**counts, **_fetch(losses, state.health, batch), **meter.read(step)}
                loop.metrics.write(row)
                _show(row, bar)
            bar.update()
            if loop.evaluate and config.eval_every > 0 and step % config.eval_every == 0:
                scores = loop.evaluate(state.trainable, frozen)
                loop.metrics.write({"step": step, **scores})
                log.info("step %d: %s", step, scores)
                meter = Meter(step, loop.least_seconds)
            if saves:
                loop.metrics.sync()
                loop.checkpointer.save(step, state)
            if stops:
                loop.stop.requested = True  # also if another process heard the signal
                break
    return state


class Meter:
    """Throughput since the last reading. The first step, which compiles, is not counted."""

    def __init__(self, step: int, least_seconds: Callable[[Batch], float] | None = None):
        self._step, self._time, self._least_seconds = step, time.perf_counter(), least_seconds
        self._examples, self._tokens, self._least = 0, 0, 0.0

    def count(self, batch: Batch) -> None:
        """Add a step's examples and real tokens."""
        self._examples += int((batch.answer_length_B > 0).sum())
        lengths = (batch.context_length_E, batch.question_length_B, batch.answer_length_B)
        self._tokens += int(sum(length.sum() for length in lengths))
        if self._least_seconds:
            self._least += self._least_seconds(batch)

    def read(self, step: int) -> dict[str, float]:
        """Return the rates since the last reading, and begin the next one."""
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


def check_health(health: Health, config: CompressionConfig) -> None:
    """Wait for the step that `health` is of, and refuse to go on after bad ones.

    Raises:
        TrainingError: if a step was bad and `config.on_bad_step` is `stop`, or too many in a row
            were.
    """
    bad, in_a_row, last = (
        int(x) for x in (health.bad_steps, health.bad_in_a_row, health.last_bad_step)
    )
    stops = config.on_bad_step == "stop"
    if bad >= 1 if stops else in_a_row >= MAX_BAD_IN_A_ROW:
        count = f"{bad} so far" if stops else f"{in_a_row} in a row"
        skip = ", or leave such steps out with --config.on_bad_step=skip" if stops else ""
        if last == 1:
            raise TrainingError(
                "the loss or its gradient is not finite: bad step 1, before anything was learned. "
                f"Does architecture={config.architecture!r} give finite slots and gradients, also "
                "past the slots that a row uses? Else train with --config.model.dtype=float32."
            )
        raise TrainingError(
            f"the loss or its gradient is not finite, or a spike: bad step {last}, {count}. The "
            "last checkpoint is from before. Lower --config.optimizer.lora_lr and "
            f"--config.optimizer.compressor_lr, train with --config.model.dtype=float32{skip}."
        )


def _fetch(losses: dict[str, jax.Array], health: Health, batch: Batch) -> dict[str, Any]:
    """Return the losses of a log line, null if not finite, and the number of skipped steps.

    A loss of which the step has no row is left out: it was not 0.
    """
    there = np.unique(batch.objective_B[batch.answer_length_B > 0])
    absent = {name for name, o in OBJECTIVE_OF.items() if OBJECTIVES.index(o) not in there}
    values = {name: float(value) for name, value in to_host(losses).items() if name not in absent}
    row = {name: round(x, 6) if math.isfinite(x) else None for name, x in values.items()}
    skipped = int(health.bad_steps)
    return {**row, "skipped_steps": skipped} if skipped else row


def _show(row: dict[str, Any], bar: Any) -> None:
    """Show a log line in the progress bar or, without a terminal, in the log."""
    bar.set_postfix_str(_postfix(row))
    if bar.disable:
        log.info("%s", _line(row))


def _postfix(row: dict[str, Any]) -> str:
    mfu = f", MFU {row['mfu']:.0%}" if "mfu" in row else ""
    speed = f"{row['examples_per_s']:.0f} examples/s, {row['tokens_per_s']:.0f} tokens/s{mfu}"
    return f"loss {_number(row['loss'])}, {speed}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _line(row: dict[str, Any]) -> str:
    left = (row["total_steps"] - row["step"]) * row["step_s"] / 60
    rest = f"{left:.1f} min left" if row["step"] > 1 else "compiled"
    losses = ", ".join(
        f"{name} {_number(row[name])}"
        for name in row
        if name not in ("step", "total_steps", "task", "step_s", "tokens_per_s")
    )
    task = f" ({row['task']})" if "task" in row else ""
    return f"step {row['step']}/{row['total_steps']}{task}: {losses}, {rest}"
