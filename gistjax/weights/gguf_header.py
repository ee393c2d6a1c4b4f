"""Header of a GGUF file: its metadata, and where each tensor lies.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian, version 2
or 3:

    "GGUF" · version u32 · number of tensors u64 · number of entries u64
    entries: key, a string · type of the value u32 · value
    tensors: name, a string · number of dimensions u32 · dimensions u64 … · type u32 · offset u64
    padding to a multiple of `general.alignment` (32), from which the tensors' offsets count

A string is its length in bytes as u64, then UTF-8. An array is the type of its elements as u32,
their number as u64, then the elements.

The `gguf` package reads the same, but makes several numpy arrays for each word of a vocabulary:
2.1 s for SmolLM2's 49,152, where this takes 0.2 s (one CPU core).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from gistjax.errors import WeightsError

VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
GGML_TYPES = {kind.value for kind in GGMLQuantizationType}

SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
"""Type of a value to its letter in `struct`."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file."""

    data: np.ndarray  # bytes [rows, bytes a row], mapped from the file
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # outermost dimension first


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Return a file's metadata and its tensors, both by name; no tensor is read.

    Raises:
        OSError: if the file cannot be opened.
        WeightsError: if it is of another byte order or version, or a tensor of an unknown type.
        ValueError: if it is no GGUF file, or ends before its header or one of its tensors does.
    """
    content = np.memmap(path, np.uint8, mode="r")
    cursor = _Cursor(content.data)
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(struct.pack("<I", version), "big")
        kind = "big-endian" if swapped in VERSIONS else f"of version {version}"
        raise WeightsError(
            f"it is a GGUF file {kind}; gistjax reads little-endian ones of version 2 and 3: "
            "convert the model again with a llama.cpp of today."
        )
    n_tensors, n_entries = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_entries):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"it has the entry {key!r} twice")
        metadata[key] = cursor.value(cursor.number("I"))
    places = [cursor.tensor() for _ in range(n_tensors)]
    alignment = metadata.get(ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{ALIGNMENT} is {alignment!r}")
    start = -(-cursor.place // alignment) * alignment
    tensors = {
        name: _tensor(content, name, start + offset, kind, shape)
        for name, offset, kind, shape in places
    }
    if len(tensors) < n_tensors:
        raise ValueError("it has two tensors of one name")
    return metadata, tensors


def _tensor(
    content: np.ndarray, name: str, start: int, kind: int, shape: tuple[int, ...]
) -> StoredTensor:
    if kind not in GGML_TYPES:
        raise WeightsError(f"it has {name} as type {kind}, which the gguf package does not know.")
    quantization = GGMLQuantizationType(kind)
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if shape[-1] % block:
        raise ValueError(f"rows of {shape[-1]} are no multiple of {quantization.name}'s {block}")
    rows, row_bytes = math.prod(shape[:-1]), shape[-1] // block * block_bytes
    data = content[start : start + rows * row_bytes]
    if data.size < rows * row_bytes:
        raise ValueError(f"it ends at byte {content.size}")
    return StoredTensor(data.reshape(rows, row_bytes), quantization, shape)


class _Cursor:
    """Reads a header from its first byte on; refuses to read beyond the file's end."""

    def __init__(self, content: memoryview):
        self._content, self.place = content, 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        begin, end = self.place, self.place + size
        if end > len(self._content):
            raise ValueError(f"it ends at byte {len(self._content)}")
        self.place = end
        return self._content[begin:end]

    def number(self, letter: str) -> Any:
        """Return the next number, its type a letter of `struct`."""
        return self.numbers(letter, 1)[0]

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        """Return the next `count` numbers of one type."""
        size = struct.calcsize(f"<{letter}")
        return struct.unpack(f"<{count}{letter}", self.take(size * count))

    def string(self) -> str:
        """Return the next string."""
        return str(self.take(self.number("Q")), "utf-8")

    def value(self, kind: int) -> Any:
        """Return a value of a type; an array as a list."""
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            return self.number(SCALARS[GGUFValueType(kind)])
        element, count = GGUFValueType(self.number("I")), self.number("Q")
        if element in SCALARS:
            return list(self.numbers(SCALARS[element], count))
        return [self.value(element) for _ in range(count)]

    def tensor(self) -> tuple[str, int, int, tuple[int, ...]]:
        """Return a tensor's name, offset, type and shape."""
        name, n_dimensions = self.string(), self.number("I")
        shape = self.numbers("Q", n_dimensions)[::-1]
        kind, offset = self.number("I"), self.number("Q")
        return name, offset, kind, shape or (1,)
