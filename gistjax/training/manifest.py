"""A checkpoint's manifest: the SHA-256 of each file, so that damage is found before a restore."""

from __future__ import annotations

import json
import os
from pathlib import Path

from gistjax.errors import CheckpointError
from gistjax.runtime.files import sha256_of, sync_folder, write_json

NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Lists every file in a folder, and makes all of them last through a power failure.

    Raises:
        OSError: if a file cannot be read or synchronised.
        StorageError: if the manifest cannot be written.
    """
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        digests[path.relative_to(folder).as_posix()] = sha256_of(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_json(folder / NAME, digests)


def check_manifest(folder: Path) -> list[Path]:
    """Makes sure that every file is as it was listed.

    Returns:
        The files that are not listed.

    Raises:
        CheckpointError: naming the first file that is missing or changed.
    """
    path = folder / NAME
    try:
        digests = json.loads(path.read_bytes())
        names = {name: folder / name for name in digests}
        inside = all(folder in path.parents and ".." not in path.parts for path in names.values())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error
    if not isinstance(digests, dict) or not digests or not inside:
        raise CheckpointError(f"{path} is damaged (it is no list of files in its folder)")
    for name, file in names.items():
        try:
            digest = sha256_of(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
        if digest != digests[name]:
            raise CheckpointError(f"{file} is damaged (its SHA-256 is not that of {NAME})")
    listed = {path, *names.values()}
    return sorted(file for file in folder.rglob("*") if not file.is_dir() and file not in listed)
