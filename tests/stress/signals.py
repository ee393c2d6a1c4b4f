"""SIGTERM and SIGINT: what was trained is saved, and the exit code says so."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from .outcome import Outcome, differences, logged, outcome
from .process import train

STOPPED = 75
AT_ONCE = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}
"""Exit codes where nothing is being trained: before the first step, and once all is trained."""

OFTEN = ("--config.log_every=1", "--config.checkpoint_every=1000", "--config.epochs=5.0")
"""Every step is logged, and only the last one saved, unless a signal asks for it."""


def trial(seed: int, folder: Path, undisturbed: Outcome, seconds: float) -> dict[str, Any]:
    """One run that is sent a signal at a random moment of its training, and then goes on to its
    end.
    """
    rng, rundir = random.Random(seed), folder / f"signal{seed}"
    number = (signal.SIGTERM, signal.SIGINT)[seed % 2]
    send = functools.partial(send_while_training, rundir, number, rng.uniform(0, seconds))
    ended = train(rundir, OFTEN, watch=send)
    row: dict[str, Any] = {"signal": number.name, "code": ended.code, "failure": ""}
    if ended.code not in (STOPPED, AT_ONCE[number]):
        return {**row, "failure": f"exit code {ended.code}: {ended.end}"}
    row["lost"] = steps_logged(rundir) - latest_checkpoint(rundir)
    row["left_running"] = is_group_alive(ended.pid)
    again = train(rundir, OFTEN)
    found = differences(outcome(rundir), undisturbed) if again.code == 0 else [again.end]
    if row["lost"] > 1 or row["left_running"] or found:
        row["failure"] = f"lost {row['lost']}, running {row['left_running']}, differs: {found}"
    shutil.rmtree(rundir)
    return row


def send_while_training(rundir: Path, number: int, delay_s: float, process: Any) -> None:
    """Sends a signal some time after the first step was logged."""
    while not (rundir / "metrics.jsonl").exists() and process.exitcode is None:
        time.sleep(0.005)
    time.sleep(delay_s)
    if process.exitcode is None:
        os.kill(process.pid, number)


def steps_logged(rundir: Path) -> int:
    """The last step in the log; 0 where there is none."""
    import json

    rows = logged(rundir) if (rundir / "metrics.jsonl").exists() else []
    return max((json.loads(row)["step"] for row in rows), default=0)


def latest_checkpoint(rundir: Path) -> int:
    """The newest complete step; 0 where there is none."""
    folder = rundir / "checkpoint"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def is_group_alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
