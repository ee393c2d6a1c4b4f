"""Decide which run of a sweep is next and what becomes of one that ended, without a process.

A run is finished when its directory holds `metrics.json`. All else is forgotten when the sweep
ends, so that starting it again retries everything that is not finished.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gistjax.errors import ConfigError
from gistjax.sweep import Run

USERS_MISTAKE = 2  # exit code of a command that cannot go on until the user fixes something
STOPPED = 75  # of one that was asked to stop and has saved its training
FAILURES = 2  # in a row, without a checkpoint between them: set aside
LOSSES = 20  # the same of workers that were lost under a run

WAITING, SUBMITTED, FINISHED, FAILED, BLOCKED = (
    "waiting",
    "submitted",
    "finished",
    "failed",
    "blocked",
)


@dataclass(frozen=True)
class Ended:
    """End of an attempt: exit code (None if the worker was lost) and the last lines of the log."""

    code: int | None
    tail: str = ""


@dataclass
class Job:
    """A run and what became of it so far."""

    run: Run
    state: str = WAITING
    attempts: int = 0
    failures: int = 0  # since it last got further
    losses: int = 0
    reached: int = 0  # its newest checkpoint when an attempt last ended
    why: str = ""
    tail: str = ""  # of its log

    @property
    def finished(self) -> bool:
        """True if the run's results are there."""
        return (self.run.workdir / "metrics.json").exists()

    @property
    def started(self) -> Path:
        """File that says when and where an attempt was started."""
        return self.run.workdir / "started.json"

    def submit(self) -> None:
        """Count an attempt."""
        self.started.unlink(missing_ok=True)
        self.state, self.attempts = SUBMITTED, self.attempts + 1

    def end(self, ended: Ended) -> None:
        """Note how an attempt ended and decide whether another follows.

        A run goes on as long as it gets further. One that fails twice in a row without a new
        checkpoint, or names a mistake of the user's, is set aside.
        """
        reached = newest_checkpoint(self.run.workdir)
        if reached > self.reached:
            self.reached, self.failures, self.losses = reached, 0, 0
        if ended.code == 0 and self.finished:
            self.state = FINISHED
            return
        self.tail = ended.tail
        lost = ended.code in (None, STOPPED)
        self.failures += not lost
        self.losses += lost
        self.why = "its worker was lost" if ended.code is None else f"exit code {ended.code}"
        if ended.code == USERS_MISTAKE or self.failures >= FAILURES or self.losses >= LOSSES:
            self.state = FAILED
        else:
            self.state = WAITING


def newest_checkpoint(workdir: Path) -> int:
    """Return the last step saved in a run directory; 0 without one."""
    names = [path.name for path in (workdir / "checkpoint").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def ready(jobs: Mapping[str, Job]) -> Iterator[Job]:
    """Yield the jobs that can start now; block those whose first stage failed."""
    for job in jobs.values():
        first = [jobs[name] for name in job.run.after if name in jobs]
        if job.state == WAITING and job.finished:
            job.state = FINISHED
        elif job.state == WAITING and any(it.state in (FAILED, BLOCKED) for it in first):
            failed = ", ".join(it.run.name for it in first if it.state in (FAILED, BLOCKED))
            job.state, job.why = BLOCKED, f"it needs {failed}, which failed"
        elif job.state == WAITING and all(it.state == FINISHED for it in first):
            yield job


@contextmanager
def sole_sweep(out: Path) -> Iterator[None]:
    """Hold a folder for one sweep; the system lets go of it when the process ends, in any way.

    Raises:
        ConfigError: if another sweep is at work there, or it can be no folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / "sweep.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be a sweep's folder: {error.strerror}.") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ConfigError(
                f"another sweep is at work in {out} ({file.read().strip() or 'unknown'}): wait for "
                "its end, stop it, or give another --out."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
