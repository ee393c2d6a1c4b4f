"""Whether a folder is a store, or can become one."""

from __future__ import annotations

from pathlib import Path

from gistjax.errors import CheckpointError

INDEX = "index.sqlite"


def is_store(path: Path) -> bool:
    """Return whether a folder is a store, or one that is damaged."""
    index = path / INDEX
    return index.is_file() and index.stat().st_size > 0


def check_place(path: Path) -> None:
    """Refuse a path that cannot become a store, but for one that was never filled.

    Raises:
        CheckpointError: saying what is there.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: a store is a folder of its own.")
    here = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if (path / "entries").is_dir() and any((path / "entries").iterdir()):
        raise CheckpointError(
            f"{path} has lost its {INDEX}: restore it from a copy, or empty the folder and add the "
            "texts again."
        )
    if here - {INDEX, f"{INDEX}-journal", "entries", "run.lock"}:
        raise CheckpointError(f"{path} has other files in it: give a store an own folder.")
