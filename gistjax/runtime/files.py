"""Files that are whole or not there, one reader of JSON, and a lock on a run directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gistjax.errors import DataError, GistjaxError, InUseError, StorageError
from gistjax.runtime.texts import decode, not_text, user_path

log = logging.getLogger(__name__)

POLL_S = 0.02
"""Seconds between two looks at a lock that another process holds."""


def read_json(
    path: Path, error: type[GistjaxError], fix: str, is_whole: Callable[[Any], bool] = bool
) -> Any:
    """Return the content of a JSON file.

    Args:
        error: raised if the file cannot be read, or is not whole.
        fix: the end of its message.
        is_whole: a check of the content; what it raises counts as a no.
    """
    try:
        found = json.loads(path.read_bytes())
        if is_whole(found):
            return found
        problem = "is damaged (something is missing in it)"
    except OSError as caught:
        problem = f"cannot be read ({caught.strerror or caught})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as caught:
        problem = f"is damaged ({type(caught).__name__}: {caught})"
    raise error(f"{path} {problem}: {fix}.")


def check_writable(path: Path) -> None:
    """Refuse a path that cannot become a file, before the work that would go into it.

    Raises:
        StorageError: if there is no such folder or nothing may be written there, or a folder,
            device or pipe has the name.
    """
    folder = path.absolute().parent
    try:
        if not folder.is_dir():
            raise StorageError(f"cannot write {path}: there is no folder {path.parent}.")
        if path.exists() and not path.is_file():
            kind = "folder" if path.is_dir() else "device or pipe"
            raise StorageError(f"cannot write {path}: it is a {kind}. Give the name of a file.")
    except OSError as error:  # a name too long, or a folder that may not be entered
        raise StorageError(f"cannot write {path}: {error.strerror}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {path}: the folder may not be written to.")


def is_file(name: str | Path) -> bool:
    """Return True if there is such a file; False too for no name at all, such as a long text."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if it is not there.

    Raises:
        StorageError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder {path} cannot be made: {error.strerror}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole: a reader, or the disk after a crash, has all new content or all old.

    A link is replaced; what it points to stays.

    Raises:
        StorageError: if the disk is full or fails, the old content then stays; or as
            `check_writable` says.
    """
    check_writable(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. What stood there before is intact: "
            "make room, or choose another directory, and run the same command again."
        ) from error


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write JSON atomically.

    Raises:
        StorageError: if the disk is full or fails; the old content stays.
    """
    text = f"{to_json(value, indent)}\n"
    write_atomically(path, text.encode(errors="backslashreplace"))  # JSON's own escape


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as every reader takes it: numbers that are not finite are null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync_folder(folder: Path) -> None:
    """Make files that were created, renamed or removed in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(name: str) -> str:
    """Return the content of the file that --context names; of standard input if it is `-`.

    Raises:
        DataError: if there is no such file, or it is empty or no text.
    """
    try:
        content = sys.stdin.buffer.read() if name == "-" else user_path(name).read_bytes()
        text = decode(content)
    except UnicodeDecodeError as error:
        raise DataError(not_text(f"--context={name}", error)) from error
    except OSError as error:
        hint = " (for a text on the command line, pipe it into --context -)" if " " in name else ""
        raise DataError(f"--context={name} cannot be read: {error.strerror}{hint}.") from error
    if "\0" in text:
        raise DataError(f"--context={name} is no text: it has zero bytes in it.")
    if not text.strip():
        raise DataError("the context is empty: give a text to ask about.")
    return text


class RunLock:
    """A lock on a run directory for a `with` block; `run.lock` in it says who holds it.

    The operating system holds the lock and lets go of it when the process ends, however it ends:
    the file that a killed process leaves behind keeps nobody out. A directory that was made for the
    lock, and has nothing else in it at the end, goes with it.

    Args:
        instead: what to do other than wait, for messages.
        wait_s: seconds to wait for another process.

    Raises:
        InUseError: if another process holds the directory, naming its pid and host.
        StorageError: if the lock cannot be written, or the file system has none.
    """

    def __init__(
        self, rundir: Path, instead: str = "choose another --workdir", wait_s: float = 0.0
    ):
        self.path, self._instead, self._wait_s = rundir / "run.lock", instead, wait_s

    def __enter__(self) -> RunLock:
        self._made = [folder for folder in self.path.parents if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise StorageError(
                f"cannot write {self.path} ({error.strerror}): {room}{self._instead}."
            ) from error
        try:
            self._take()
        except BlockingIOError:
            holder = self._holder() or "an unknown process"
            self._file.close()
            raise InUseError(
                f"{self.path.parent} is in use by {holder}. "
                f"Wait for it or stop it, or {self._instead}."
            ) from None
        except OSError as error:
            self._file.close()
            raise StorageError(
                f"{self.path} cannot be locked: {error.strerror}. "
                "Choose a folder on a file system with locks."
            ) from error
        if self._is_gone():
            self._file.close()
            return self.__enter__()
        if left := self._holder():
            log.warning("%s was left by %s, which has ended: recovered", self.path, left)
        self._sign()
        return self

    def __exit__(self, *_: object) -> None:
        # Where there is a run, the file stays: removing it could hand the directory to two.
        with contextlib.suppress(OSError):
            self._file.truncate(0)
            if self._made and os.listdir(self.path.parent) == [self.path.name]:
                self.path.unlink()
                for folder in self._made:  # innermost first, up to one that is not empty
                    folder.rmdir()
        self._file.close()

    def _take(self) -> None:
        """Take the lock as soon as it is free.

        Raises:
            BlockingIOError: if another process still holds it at the end.
        """
        end = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(POLL_S)

    def _is_gone(self) -> bool:
        """Whether who held the lock has removed its file since it was opened here."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return True

    def _holder(self) -> str:
        self._file.seek(0)
        try:
            holder = json.loads(self._file.read())
            own = (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
            which = ", which is this process" if own else ""
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}{which}"
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
