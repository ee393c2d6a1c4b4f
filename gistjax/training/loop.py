"""The training loop: step after step from where the last checkpoint ended, logging and saving on the way."""

from __future__ import annotations

import json
import logging
import math
import operator
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gistjax.config import CompressionConfig
from gistjax.data.example import Batch
from gistjax.errors import StorageError, TrainingError
from gistjax.runtime.files import write_atomically
from gistjax.runtime.sharding import any_process, is_primary, put_batch, to_host
from gistjax.runtime.signals import StopSignals
from gistjax.training.checkpoint import Checkpointer
from gistjax.training.step import Health, TrainState, TrainStep
from gistjax.training.tensorboard import Events

log = logging.getLogger(__name__)

RATES = ("step_s", "examples_per_s", "tokens_per_s", "mfu")
"""Fields of `metrics.jsonl` that hang on the clock. All others are the same in every run of a configuration."""

MAX_BAD_IN_A_ROW = 20
"""Where bad steps are skipped: so many one after another are no accident."""


class Plan(Protocol):
    """Which rows a step sees: a pure function of the step."""

    def batch(self, step: int) -> Batch:
        """The micro-batches `[K, B, …]` of an optimizer step, as host arrays."""


class MetricsLog:
    """`metrics.jsonl`: one line a logged step, each step once, also after a resume; and, if wanted, TensorBoard's events.

    But for the rates (`RATES`), a run that was interrupted leaves the same bytes as one that was not.

    Args:
        path: the file.
        first_step: the step that the run goes on from; later ones are left out, since they are run again.
        every: how many steps lie between two lines.
        tensorboard: also write events.
    """

    def __init__(self, path: Path, first_step: int, every: int = 1, tensorboard: bool = False):
        self._path = path
        self._events = Events(path.parent, first_step) if tensorboard and is_primary() else None
        if not is_primary():
            return
        steps = self._cut(first_step) if path.exists() else []
        if first_step and (1 not in steps or steps[-1] <= first_step - every):
            log.warning("%s lacks lines of steps that were trained", path)

    def _cut(self, first_step: int) -> list[int]:
        """Leaves out the steps behind the last checkpoint, which are run and logged again; returns the others."""
        content = self._path.read_bytes()
        kept, steps, again = [], [], []
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            try:
                step = operator.index(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):  # or else cut short by a kill: its step is run again
                    log.warning("line %d of %s is damaged and left out", number, self._path)
                continue
            if step <= first_step:
                kept.append(line)
                steps.append(step)
            else:
                again.append(step)
        if again:
            log.warning(
                "steps %d to %d were not saved: they are run again", first_step + 1, max(again)
            )
        if b"".join(kept) != content:
            write_atomically(self._path, b"".join(kept))
        return steps

    def write(self, row: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
            StorageError: if the disk is full or fails.
        """
        if is_primary():
            self._append(json.dumps(row) + "\n")
        if self._events:
            self._events.write(row)

    def sync(self) -> None:
        """Makes what was written last through a power failure."""
        if is_primary():
            self._append("", sync=True)

    def close(self) -> None:
        """No line will follow."""
        if self._events:
            self._events.close()

    def _append(self, text: str, sync: bool = False) -> None:
        try:
            with self._path.open("a") as file:
                file.write(text)
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}. Make room and run the same command again; it goes "
                "on from the last checkpoint."
            ) from error


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
    stop: StopSignals,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    least_seconds: Callable[[Batch], float] | None = None,
) -> TrainState:
    """Trains from `state.step` to `total_steps`, or until a signal asks to stop.

    What belongs to a step is written before its checkpoint, so that nothing of it is missing after a resume.

    Args:
        evaluate: scores the model on the way, each `config.eval_every` steps.
        least_seconds: that a batch's step takes at the devices' peak, where it is known; the log then has its share (MFU).

    Raises:
        TrainingError: at a bad step, as `config.on_bad_step` says; the last checkpoint stays.
        StorageError: if log or checkpoint cannot be written; the last checkpoint stays.
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
            stops = any_process(stop.requested)  # read once: what comes later is for the next step
            saves = step % config.checkpoint_every == 0 or step == total_steps or stops
            logs = step == 1 or step % config.log_every == 0 or step == total_steps
            if logs or saves:
                check_health(state.health, config)
                checkpointer.check()
            if logs:
                row = {
                    "step": step,
                    "total_steps": total_steps,
                    **_fetch(losses, state.health),
                    **meter.read(step),
                }
                metrics.write(row)
                bar.set_postfix_str(_postfix(row))
                if bar.disable:
                    log.info("%s", _line(row, total_steps))
            bar.update()
            if evaluate and config.eval_every > 0 and step % config.eval_every == 0:
                scores = evaluate(state)
                metrics.write({"step": step, **scores})
                log.info("step %d: %s", step, scores)
                meter = Meter(step, least_seconds)
            if saves:
                metrics.sync()
                checkpointer.save(step, state)
            if stops:
                stop.requested = True  # also where another process heard the signal
                break
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


def check_health(health: Health, config: CompressionConfig) -> None:
    """Waits for the step that `health` is of, and says what was bad.

    Raises:
        TrainingError: if a step was bad and `config.on_bad_step` is `stop`, or too many in a row were.
    """
    bad, in_a_row, last = (
        int(x) for x in (health.bad_steps, health.bad_in_a_row, health.last_bad_step)
    )
    stops = config.on_bad_step == "stop"
    if bad >= 1 if stops else in_a_row >= MAX_BAD_IN_A_ROW:
        count = f"{bad} so far" if stops else f"{in_a_row} in a row"
        skip = ", or leave such steps out with --config.on_bad_step=skip" if stops else ""
        raise TrainingError(
            f"the loss or its gradient is not finite, or a spike: bad step {last}, {count}. The last checkpoint is "
            "from before. Lower --config.optimizer.lora_lr and --config.optimizer.compressor_lr, train with "
            f"--config.model.dtype=float32{skip}."
        )


def _fetch(losses: dict[str, jax.Array], health: Health) -> dict[str, Any]:
    """A row of the log: null for what is not finite, and how many steps were skipped if any."""
    values = {name: float(value) for name, value in to_host(losses).items()}
    row = {name: round(x, 6) if math.isfinite(x) else None for name, x in values.items()}
    skipped = int(health.bad_steps)
    return {**row, "skipped_steps": skipped} if skipped else row


def _postfix(row: dict[str, Any]) -> str:
    mfu = f", MFU {row['mfu']:.0%}" if "mfu" in row else ""
    speed = f"{row['examples_per_s']:.0f} examples/s, {row['tokens_per_s']:.0f} tokens/s{mfu}"
    return f"loss {_number(row['loss'])}, {speed}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _line(row: dict[str, Any], total_steps: int) -> str:
    left = (total_steps - row["step"]) * row["step_s"] / 60
    rest = f"{left:.1f} min left" if row["step"] > 1 else "compiled"
    losses = ", ".join(
        f"{name} {_number(row[name])}"
        for name in row
        if name not in ("step", "total_steps", "step_s", "tokens_per_s")
    )
    return f"step {row['step']}/{total_steps}: {losses}, {rest}"
