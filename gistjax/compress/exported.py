"""The file that shares a compressor: its trained parameters by name, as they are or in int8.

`NAME` in int8 has its scales, fp32, in `NAME.scale`; what is in int8 is decided by `scaled_axes`. A
file without a version holds parameters as they are; one with int8 says version 2 (compressors that
came with gistjax up to 0.2.0 do not).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gistjax.errors import CheckpointError
from gistjax.runtime.quantize import check_scales, dequantize, quantize
from gistjax.runtime.tensors import load_tensors, save_tensors

FORMAT = "gistjax"
"""What the metadata of a compressor's file says that it is."""
VERSION = "2"
"""Version of a file with parameters in int8."""
SCALE = ".scale"
"""Suffix that makes the name of an int8 array that of its scales."""

ADAPTER = re.compile(r"(^|/)lora/adapters/.*/(?P<factor>[ab])$")
AS_IT_IS = re.compile(r"(profile|norm|gate|bias|scale)$")
"""Last words of what is small, or counts more than its size says."""
LEAST_NUMBERS = 4096
LEAST_GROUP = 64
"""Least numbers of a matrix that is no adapter's, and those that share a scale."""


def scaled_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the axes of a parameter along which numbers share a scale in int8.

    None where it is not put in int8. In an adapter, stacked along layers or not, each rank
    component has a scale: of `a` `[L, I, R]` each column, of `b` `[L, R, *O]` each row. In other
    large matrices, such as a scorer's, the longer of the last two axes has one.
    """
    rank = len(shape)
    if rank < 2 or AS_IT_IS.search(name):
        return None
    if adapter := ADAPTER.search(name):
        if adapter["factor"] == "a":
            return (rank - 2,)
        return tuple(range(2 if rank > 2 else 1, rank))
    longer = rank - 2 if shape[-2] > shape[-1] else rank - 1
    small = np.prod(shape) < LEAST_NUMBERS or shape[longer] < LEAST_GROUP
    return None if small else (longer,)


def packed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return parameters by name with matrices in int8 and their scales beside them.

    Raises:
        CheckpointError: if one is not finite.
    """
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        axes = scaled_axes(name, array.shape)
        if axes is None:
            result[name] = array
            continue
        try:
            result[name], result[name + SCALE] = quantize(array, axes)
        except ValueError as error:
            raise CheckpointError(f"{name} cannot be put in int8: {error}.") from error
    return result


def unpacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what `packed` was given, in fp32 where it was rounded to int8."""
    scales = {name + SCALE for name, array in arrays.items() if array.dtype == np.int8}
    return {
        name: dequantize(array, arrays[name + SCALE]) if array.dtype == np.int8 else array
        for name, array in arrays.items()
        if name not in scales
    }


def is_packed(arrays: Mapping[str, np.ndarray]) -> bool:
    """Return True if a parameter is in int8."""
    return any(array.dtype == np.int8 for array in arrays.values())


def save_exported(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write parameters, some of them in int8 if they are `packed`, with a checksum.

    Raises:
        StorageError: if the disk is full or fails; a file that was there stays.
    """
    own = {"version": VERSION} if is_packed(arrays) else {}
    save_tensors(path, arrays, {**metadata, **own})


def load_stored(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a compressor's file as they stand in it, and its metadata.

    Raises:
        CheckpointError: if the file is missing or damaged, is of a later version, holds something
            else, or the scales of a parameter are missing or not finite.
    """
    arrays, metadata = load_tensors(path)
    kind, version = metadata.get("format", FORMAT), metadata.get("version", VERSION)
    if kind != FORMAT:
        raise CheckpointError(f"{path} is no compressor, but a file of format {kind!r}.")
    if version != VERSION:
        raise CheckpointError(
            f"{path} has version {version}; this gistjax reads compressors up to {VERSION}: "
            "update gistjax, or export the run again."
        )
    for name, array in arrays.items():
        if array.dtype == np.int8:
            _check(path, name, array, arrays.get(name + SCALE))
    return arrays, metadata


def _check(path: Path, name: str, array: np.ndarray, scale: np.ndarray | None) -> None:
    try:
        if scale is None:
            raise ValueError("its scales are missing")
        check_scales(array, scale)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged: {name} is in int8, and {error}. Export the run again."
        ) from error


def load_exported(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a compressor's parameters by name, fp32 where they were in int8, and its metadata.

    Raises:
        CheckpointError: as `load_stored`.
    """
    arrays, metadata = load_stored(path)
    return unpacked(arrays), metadata
