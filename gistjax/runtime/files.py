"""Writing files that are whole or not there: a temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from gistjax.errors import StorageError


def check_writable(path: Path) -> None:
    """Refuses what cannot become a file, before the work that is to go into it.

    Raises:
        StorageError: if there is no such folder or nothing may be written there, or a folder, device or pipe has the name.
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
    """Whether there is such a file; False too for what can be no name, such as a long text."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where there is none.

    Raises:
        StorageError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder {path} cannot be made: {error.strerror}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or the disk after a crash, has all of the new content or all of the old. A link is
    replaced, what it points to stays.

    Raises:
        StorageError: if the disk is full or fails, the old content then stays; or as `check_writable` says.
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
    """Writes JSON atomically.

    Raises:
        StorageError: if the disk is full or fails; the old content stays.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed or removed in a folder last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
