"""Runs that are killed (SIGKILL) again and again must end like one that was not."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .outcome import Outcome, differences, outcome
from .process import Fault, train

PLACES = ("any moment", "file operation", "saving", "evaluation", "epoch edge")


def kill_now() -> None:
    """As the kernel does it: no clean-up, no flushing."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_file_operation(number: int, rundir: Path) -> None:
    """Before Python's so-manieth operation on a file of the run directory: open, rename, remove,
    make a folder.
    """
    left = [number]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if str(rundir) in str(arguments[0]):
            left[0] -= 1
            if left[0] < 0:
                kill_now()

    sys.addaudithook(hook)


def while_saving(number: int, delay_s: float, rundir: Path) -> None:
    """A moment after the so-manieth save began."""
    from gistjax.training.checkpoint import Checkpointer

    original, saves = Checkpointer.save, []

    def save(self: Any, step: int, state: Any) -> None:
        saves.append(step)
        if len(saves) > number:
            threading.Timer(delay_s, kill_now).start()
        original(self, step, state)

    Checkpointer.save = save  # type: ignore[method-assign]


def in_evaluation(number: int, rundir: Path) -> None:
    """In the midst of the so-manieth batch of answers."""
    from gistjax.evaluation.generate import Generator

    original, batches = Generator._collect, []

    def collect(self: Any, *arguments: Any) -> None:
        batches.append(1)
        if len(batches) > number:
            kill_now()
        original(self, *arguments)

    Generator._collect = collect  # type: ignore[method-assign]


def at_epoch_edge(before: bool, rundir: Path) -> None:
    """At the last step of an epoch, or at the first of the next."""
    from gistjax.data.batching import TrainPlan

    original, taken = TrainPlan.batch, []

    def batch(self: Any, step: int) -> Any:
        if (step + before) % self.steps_per_epoch == 0 and taken:
            kill_now()
        taken.append(step)
        return original(self, step)

    TrainPlan.batch = batch  # type: ignore[method-assign]


def draw(place: str, rng: random.Random) -> Fault | None:
    """A fault at a place; None for a kill from outside."""
    if place == "file operation":
        return functools.partial(at_file_operation, rng.randrange(60))
    if place == "saving":
        return functools.partial(while_saving, rng.randrange(3), rng.uniform(0, 0.08))
    if place == "evaluation":
        return functools.partial(in_evaluation, rng.randrange(12))
    if place == "epoch edge":
        return functools.partial(at_epoch_edge, rng.random() < 0.5)
    return None


def trial(
    seed: int,
    kills: int,
    folder: Path,
    undisturbed: Outcome,
    seconds: float,
    overrides: Sequence[str],
) -> dict[str, Any]:
    """One run, killed so often, then left to end: where it was killed, and what then differed from
    the undisturbed.
    """
    rng, rundir = random.Random(seed), folder / f"run{seed}"
    killed: Counter[str] = Counter()
    while killed.total() < kills:
        place, delay = rng.choice(PLACES), rng.uniform(0.1, 1.0) * seconds
        ended = train(
            rundir,
            [*overrides, f"--config.checkpoint_every={rng.randint(1, 4)}"],
            draw(place, rng),
            functools.partial(kill_after, delay) if place == "any moment" else None,
        )
        if ended.code == -signal.SIGKILL:
            killed[place] += 1
        elif ended.code:
            return {"killed": killed, "failure": f"exit code {ended.code}: {ended.end}"}
        else:
            break  # it got to its end before its moment came
    ended = train(rundir, overrides)
    found = differences(outcome(rundir), undisturbed) if ended.code == 0 else [ended.end]
    shutil.rmtree(rundir)
    return {"killed": killed, "failure": f"differs: {found}" if found else ""}


def kill_after(delay_s: float, process: Any) -> None:
    """Kills a process from outside if it still runs after so long."""
    time.sleep(delay_s)
    if process.exitcode is None:
        process.kill()
