"""Two runs in one directory: the second is refused; a killed run's lock keeps nobody out."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Any

from .outcome import Outcome, differences, outcome
from .process import Ended, train


def trial(seed: int, folder: Path, undisturbed: Outcome) -> dict[str, Any]:
    """A run, a second one meanwhile, and, where the first is killed, a third."""
    rundir, kills = folder / f"lock{seed}", seed % 2 == 0
    second: list[Ended] = []

    def meanwhile(first: Any) -> None:
        while not (rundir / "run.lock").exists() or not (rundir / "run.lock").read_text():
            time.sleep(0.01)
        # The log goes beside the folder named first; the run itself is in the second, which overrules it.
        second.append(train(folder / f"second{seed}", [f"--workdir={rundir}"]))
        if kills:
            first.kill()

    first = train(rundir, watch=meanwhile)
    holder = f"in use by process {first.pid} on {socket.gethostname()}"
    failure = ""
    if second[0].code != 2 or holder not in second[0].output:
        failure = f"second: exit code {second[0].code}: {second[0].end}"
    last = train(rundir) if kills else first
    recovered = f"left by process {first.pid}" in last.output
    if last.code or differences(outcome(rundir), undisturbed) or recovered != kills:
        failure = failure or f"exit code {last.code}, recovered {recovered}: {last.end}"
    shutil.rmtree(rundir)
    return {
        "came": "second refused, lock recovered" if kills else "second refused",
        "failure": failure,
    }
