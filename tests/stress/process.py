"""`python -m gistjax.train` in processes of their own, forked where everything is imported and JAX
not yet started.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parent / "config.py"
CPU_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
"""Tiny programs: compile fast, and leave the other cores to other trials."""

PATIENCE_S = 600.0
"""A process that lives longer hangs."""

Fault = Callable[[Path], None]
"""Called in the process before the command, with the run directory; to be had by name, such as
`functools.partial`.
"""


@dataclass(frozen=True)
class Ended:
    """A process that came to its end."""

    code: int  # exit code; negative: the signal that killed it
    output: str  # standard output and standard error
    seconds: float
    pid: int

    @property
    def end(self) -> str:
        """The last lines of the output, results left out."""
        lines = [line for line in self.output.splitlines() if not line.startswith("{")]
        return "\n".join(lines)[-600:]


@functools.cache
def _context() -> Any:
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # every trial compiles the same
    if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
        os.environ.setdefault("XLA_FLAGS", CPU_FLAGS)
    context = multiprocessing.get_context("forkserver")
    # By the name that it has from the checkout's root, also under pytest: a name not found is passed over in silence.
    context.set_forkserver_preload(["tests.stress.preload"])
    return context


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """A process that runs a function of a module."""
    process = _context().Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def train(
    rundir: Path,
    overrides: Sequence[str] = (),
    fault: Fault | None = None,
    watch: Callable[[Any], None] | None = None,
) -> Ended:
    """Runs the training command to its end.

    Args:
        overrides: `--config.KEY=VALUE`.
        fault: what goes wrong inside.
        watch: what is done to the process from outside, given its `multiprocessing.Process`.
    """
    log = rundir.with_suffix(".log")
    begin = time.monotonic()
    process = start(_train, rundir, tuple(overrides), fault, log)
    if watch:
        watch(process)
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{rundir}: hangs after {PATIENCE_S:.0f} s\n{log.read_text()}")
    output = log.read_text(errors="replace")
    return Ended(process.exitcode, output, time.monotonic() - begin, process.pid)


def _train(rundir: Path, overrides: Sequence[str], fault: Fault | None, log: Path) -> None:
    os.setsid()  # a process group of its own: what it leaves running can be found
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    logging.root.handlers.clear()  # the command sets up its own, as in a fresh process
    from gistjax import train as command
    from gistjax.runtime import cli

    sys.argv = ["train", f"--config={CONFIG}", f"--workdir={rundir}", *overrides]
    if fault:
        fault(rundir)
    cli.run(command.main, command.define_flags)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that is called in a process of its own."""
    ours, theirs = _context().Pipe()
    process = start(_answer, theirs, function, arguments)
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{function.__name__} ended with {process.exitcode}") from None
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(pipe: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        pipe.send(function(*arguments))
    except Exception as error:
        pipe.send(error)
