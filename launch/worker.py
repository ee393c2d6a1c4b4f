"""One attempt at a run, on the machine and the devices that it was given."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from gistjax.runtime.files import write_json

LOG = "log.txt"
TAIL_LINES = 15
PATIENCE_S = 60.0  # for a command that was asked to stop

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def attempt(command: str, folder: str, workdir: str) -> tuple[int, str]:
    """Run a command line; return its exit code and the end of its log.

    Its output goes to `log.txt` of the run directory, the command to `started.json`.

    The kernel ends the command with this process. An earlier attempt may still be ending: this one
    waits for its lock, which the command inherits.

    Args:
        folder: the working directory, from which `workdir` is seen.
    """
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # how Ray cancels; ignored under nohup
    rundir = Path(workdir)
    rundir.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *shlex.split(command)[1:]]
    with (rundir / "attempt.lock").open("a") as lock, (rundir / LOG).open("ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host, devices = socket.gethostname(), _devices()
        started = {"command": command, "host": host, "devices": devices, "time": time.time()}
        write_json(rundir / "started.json", started)
        log.write(f"--- {time.strftime('%F %T')} {host} {devices}\n".encode())
        log.flush()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            preexec_fn=_die_with_parent,
        )
        return _wait(process), tail(rundir)


def _devices() -> str:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"GPU {gpus}" if gpus else "CPU"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code. If this task is cancelled, the command may save what it has."""
    try:
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue  # awake now and then, or a cancellation would not be seen
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def tail(workdir: Path) -> str:
    """Return the last lines of a run's log."""
    try:
        text = (workdir / LOG).read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.replace("\r", "\n").splitlines()[-TAIL_LINES:])
