"""One process at a time in a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from gistjax.errors import CheckpointError, StorageError

log = logging.getLogger(__name__)


class RunLock:
    """Holds a run directory while in a `with` block; `run.lock` in it says who does.

    The operating system holds the lock and lets go of it when the process ends, however it ends: the file that a killed
    process leaves behind keeps nobody out.

    Raises:
        CheckpointError: if another process holds the directory, naming its pid and host.
        StorageError: if the lock cannot be written, or the file system has none.
    """

    def __init__(self, rundir: Path):
        self.path = rundir / "run.lock"

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path}: {error.strerror}. Make room, or choose another --workdir."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder() or "an unknown process"
            self._file.close()
            raise CheckpointError(
                f"{self.path.parent} is in use by {holder}. Wait for it or stop it, or choose another --workdir."
            ) from None
        except OSError as error:
            self._file.close()
            raise StorageError(
                f"{self.path} cannot be locked: {error.strerror}. Choose a --workdir on a file system with locks."
            ) from error
        if left := self._holder():
            log.warning("%s was left by %s, which has ended: recovered", self.path, left)
        self._sign()
        return self

    def __exit__(self, *_: object) -> None:
        # The file itself stays: removing it could hand the directory to two.
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()

    def _holder(self) -> str:
        self._file.seek(0)
        try:
            holder = json.loads(self._file.read())
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (ValueError, KeyError, TypeError):
            return ""

    def _sign(self) -> None:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(holder))
            self._file.flush()
        except OSError as error:
            log.warning("%s cannot be written (%s): it does not name its holder", self.path, error)
