"""Truncated, missing, empty and left-over files: a run goes on from an earlier step, or says why it
cannot.
"""

from __future__ import annotations

import functools
import random
import re
import shutil
from pathlib import Path
from typing import Any

from . import kill
from .outcome import Outcome, differences, outcome
from .process import train

DAMAGES = ("truncated", "missing", "empty", "left over", "step missing", "all steps missing")


def prepare(rundir: Path) -> None:
    """A run that was killed in its tenth step, with checkpoints of steps 6 and 9."""
    ended = train(rundir, fault=functools.partial(kill_in_step, 10))
    assert ended.code == -9, ended.output


def kill_in_step(number: int, rundir: Path) -> None:
    """A fault: the process is killed when it asks for the batch of a step, with all saves done."""
    from gistjax.data.batching import TrainPlan
    from gistjax.training.checkpoint import Checkpointer

    batch, save = TrainPlan.batch, Checkpointer.save

    def take(self: Any, step: int) -> Any:
        if step + 1 == number:
            kill.kill_now()
        return batch(self, step)

    def save_and_wait(self: Any, step: int, state: Any) -> None:
        save(self, step, state)
        self.wait()

    TrainPlan.batch, Checkpointer.save = take, save_and_wait  # type: ignore[method-assign]


def damage(rng: random.Random, rundir: Path, kind: str) -> Path:
    """Does it, and returns the file or folder that was damaged."""
    steps = sorted(rundir.glob("checkpoint/[0-9]*"), key=lambda path: int(path.name))
    files = [path for path in rundir.rglob("*") if path.is_file() and path.name != "run.lock"]
    file = rng.choice(sorted(files))
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[: rng.randrange(max(file.stat().st_size, 1))])
    elif kind == "missing":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "left over":
        file = file.with_name(file.name + ".tmp") if rng.random() < 0.5 else _unfinished(rundir)
        file.write_bytes(rng.randbytes(rng.randrange(2000)))
    else:
        file = steps[-1] if kind == "step missing" else steps[0].parent
        shutil.rmtree(file)
    return file


def _unfinished(rundir: Path) -> Path:
    folder = rundir / "checkpoint" / "unfinished" / "12.orbax-checkpoint-tmp"
    folder.mkdir(parents=True)
    return folder / "_METADATA"


def trial(seed: int, source: Path, folder: Path, undisturbed: Outcome) -> dict[str, Any]:
    """Damages a copy of an interrupted run and starts it again."""
    rng, kind = random.Random(seed), DAMAGES[seed % len(DAMAGES)]
    rundir = folder / f"damaged{seed}"
    shutil.copytree(source, rundir)
    damaged = damage(rng, rundir, kind)
    ended = train(rundir)
    resumed = re.search(r"resumed from step (\d+)", ended.output)
    if ended.code == 2:
        came = "refused"
        failure = "" if str(damaged) in ended.output else "refused without naming the file"
    elif ended.code:
        came, failure = "failed", f"exit code {ended.code}"
    else:
        came = f"from step {resumed[1]}" if resumed else "from the start"
        found = differences(outcome(rundir), undisturbed)
        # A log that was damaged cannot be made whole; the run says so and goes on.
        told = "lacks lines" in ended.output and damaged.name == "metrics.jsonl"
        failure = f"differs: {found}" if found and not (told and found == ["log"]) else ""
        if not resumed and "run again" not in ended.output:
            failure = "started from scratch without a word"
    shutil.rmtree(rundir)
    if failure:
        failure += f" ({kind} {damaged}): {ended.end}"
    return {"came": f"{kind}: {came}", "failure": failure}
