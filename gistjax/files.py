"""Writing files that are whole or not there: a temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from gistjax.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or the disk after a crash, has all of the new content or all of the old.

    Raises:
        StorageError: if the disk is full or fails; the old content stays.
    """
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
