"""Safetensors files that carry a SHA-256 of themselves, so that no damage to them goes unseen.

The digest stands in the file's metadata, under `sha256`; it is of the whole file with zeros in its
own place. The same arrays and metadata give the same bytes. Any safetensors library reads such a
file. The digest tells of accidents, not of forgery: whoever
changes a file on purpose can change the digest too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gistjax.errors import CheckpointError
from gistjax.runtime.files import write_atomically

BLANK = "0" * 64
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def save_tensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays of any shape and dtype, and text about them, as one file, atomically.

    Raises:
        StorageError: if the disk is full or fails; a file that was there stays.
    """
    write_atomically(path, tensor_bytes(arrays, metadata))


def tensor_bytes(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return what `save_tensors` writes."""
    plain = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    size, data = int.from_bytes(plain[:8], "little"), memoryview(plain)
    tensors = json.loads(plain[8 : 8 + size])
    about = dict(sorted({**(metadata or {}), "sha256": BLANK}.items()))
    header = json.dumps({"__metadata__": about, **tensors}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    content = b"".join([len(header).to_bytes(8, "little"), header, data[8 + size :]])
    found = DIGEST.search(content)
    assert found is not None
    digest = _digest(content, found).encode()
    return content[: found.start(1)] + digest + content[found.end(1) :]


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return arrays and metadata of a `save_tensors` file.

    Raises:
        CheckpointError: if the file is missing, damaged, or was not written by `save_tensors`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error
    size = int.from_bytes(content[:8], "little")
    found = DIGEST.search(content, 8, min(8 + size, len(content)))
    if found is None:
        raise CheckpointError(
            f"{path} has no checksum: it is damaged, cut short, or was not written by gistjax. "
            "Copy it anew, or run the command that made it again."
        )
    if _digest(content, found) != found[1].decode():
        raise CheckpointError(
            f"{path} is damaged: its bytes do not have the SHA-256 that it names. "
            "Copy it anew, or run the command that made it again."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata()
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {error}.") from error


def hash_tensors(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and bytes of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(repr((name, array.dtype.name, array.shape)).encode())
        digest.update(np.asarray(array, order="C").tobytes())
    return digest.hexdigest()


def _digest(content: bytes, found: re.Match[bytes]) -> str:
    digest, view = hashlib.sha256(), memoryview(content)
    for part in (view[: found.start(1)], BLANK.encode(), view[found.end(1) :]):
        digest.update(part)
    return digest.hexdigest()
