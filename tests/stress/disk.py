"""A full or failing disk at each writing call of a run: what was saved stays, the message is clear,
and the run goes on.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import multiprocessing.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .outcome import Outcome, differences, outcome
from .process import call, train

ERRORS = (errno.ENOSPC, errno.EIO)
SAVES = ("--config.checkpoint_every=4",)
"""Three saves, the last of which also removes a step."""


def preload(folder: Path) -> bool:
    """Builds `fail_io.c` and has it loaded into every process started from now on; False without a
    C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return False
    library = folder / "fail_io.so"
    source = Path(__file__).parent / "fail_io.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    os.environ["LD_PRELOAD"] = str(library)
    return True


def is_preloaded() -> bool:
    """Whether `preload` succeeded."""
    return "fail_io" in os.environ.get("LD_PRELOAD", "")


def fail_at(number: int, error: int, rundir: Path) -> None:
    """A fault: a full disk (ENOSPC) from this call on; any other error at this call alone."""
    ctypes.CDLL(None).fail_io_arm(
        str(rundir).encode(), ctypes.c_long(number), error, error == errno.ENOSPC
    )


def count(rundir: Path) -> None:
    """A fault that is none: how many writing calls a run makes goes to `RUNDIR.calls`."""
    fail_at(-1, 0, rundir)
    file = rundir.with_suffix(".calls")

    def write() -> None:
        file.write_text(str(ctypes.CDLL(None).fail_io_calls()))

    multiprocessing.util.Finalize(None, write, exitpriority=1)  # such processes have no atexit


def writing_calls(rundir: Path) -> int:
    """How many a whole run makes."""
    ended = train(rundir, SAVES, count)
    assert ended.code == 0, ended.output
    return int(rundir.with_suffix(".calls").read_text())


def trial(number: int, folder: Path, undisturbed: Outcome) -> dict[str, Any]:
    """A run whose disk fails at one call, and then starts again with the disk repaired."""
    rundir, error = folder / f"disk{number}", ERRORS[number % 2]
    ended = train(rundir, SAVES, functools.partial(fail_at, number, error))
    name = errno.errorcode[error]
    cause = os.strerror(error)
    failure = ""
    if ended.code not in (0, 2):
        failure = f"exit code {ended.code}"
    elif ended.code == 2 and not re.search(rf"error: cannot (write|save) .*{cause}", ended.output):
        failure = "unclear message"
    elif "gistjax/train" in ended.output:  # tensorstore prints some of its own, whatever one does
        failure = "a traceback through gistjax"
    saved = call(checked_steps, rundir / "checkpoint") if not failure else []
    again = train(rundir, SAVES)
    resumed = re.search(r"resumed from step (\d+)", again.output)
    if again.code:
        failure = failure or f"the second start: {again.end}"
    elif saved and (not resumed or int(resumed[1]) != saved[-1]):
        failure = failure or f"saved {saved}, but {again.end}"
    else:
        found = differences(outcome(rundir), undisturbed)
        failure = failure or (f"differs: {found}" if found else "")
    shutil.rmtree(rundir, ignore_errors=True)
    if failure:
        failure = f"call {number} {name}: {failure}: {ended.end}"
    return {"code": f"{name}: exit code {ended.code}", "failure": failure}


def checked_steps(checkpoint: Path) -> list[int]:
    """The complete steps, each checked against its manifest."""
    from gistjax.training.checkpoint import Checkpointer
    from gistjax.training.manifest import check_manifest

    with Checkpointer(checkpoint) as checkpointer:
        for step in checkpointer.steps:
            check_manifest(checkpoint / str(step))
        return checkpointer.steps
