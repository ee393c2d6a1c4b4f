"""The file of a saved document: safetensors with a checksum, and only slots that are in use.

    k, v        [layers, KV heads, slots, head]   of slots that are kept as keys and values
    x           [slots, D]                        of soft tokens
    position    [slots]                           rotary, from the end of the prompt before them

or, where entries are kept of the cache, version 3:

    k, v        [entries, head]                   by layer, KV head and position
    count       [layers, KV heads]                how many of each

or, in 8, 4, 3 or 2 bits, version 4 of entries and 5 of slots (`gistjax.compress.rounded`).

Its metadata has the format's name and version, the compressor and base that made it (SHA-256), the
gistjax that wrote it, the numbers of tokens, pieces and positions, and of the steps in which its
entries were refined, if they were. Version 1, of gistjax 0.1,
is called `gistjax-memory` and has padding; it is read too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

import gistjax
from gistjax.compress.context import CompressedContext
from gistjax.compress.kept import Entries, entries_of, packed
from gistjax.compress.rounded import (
    coded_entries,
    file_arrays,
    restore_slots,
    round_entries,
    round_slots,
    slots_of,
)
from gistjax.errors import CheckpointError
from gistjax.model.config import LlamaConfig
from gistjax.model.kv_cache import Cache
from gistjax.runtime.quantize import BITS, check_bits, widths
from gistjax.runtime.tensors import load_tensors, save_tensors, tensor_bytes

FORMAT, VERSION, KEPT = "gistjax-document", "2", "3"
ROUNDED_ENTRIES, ROUNDED_SLOTS = "4", "5"
FORMAT_1 = "gistjax-memory"

FORMS = {
    VERSION: (),
    KEPT: (),
    ROUNDED_ENTRIES: ("bits", "dtype"),
    ROUNDED_SLOTS: ("bits", "dtype", "width"),
}
"""What the metadata of each version say of its arrays."""

PARTS = {
    "keys": ("k",),
    "values": ("v",),
    "vectors": ("x",),
    "scales": ("k_scale", "k_offset", "v_scale", "v_offset", "x_scale", "x_offset"),
    "tables": ("count", "position"),
}
"""The arrays of a file by what they are."""


@dataclass(frozen=True)
class About:
    """The origin of a document: text, compressor and base."""

    tokens: int
    pieces: int
    compressor: str  # SHA-256 of the exported compressor; empty for the base alone
    base: str
    base_sha256: str
    refined: int = 0  # steps on its entries


@dataclass(frozen=True)
class Stored:
    """A compressed context of one row as a file holds it."""

    arrays: dict[str, np.ndarray]
    form: dict[str, str]  # the metadata that tell it: the version; of few bits also these, …
    positions: int  # rotary, that it takes up

    @property
    def bits(self) -> int | None:
        """Bits of a number, where they are few."""
        return int(self.form["bits"]) if "bits" in self.form else None

    @property
    def of_entries(self) -> bool:
        """Whether it is entries kept of the cache, not slots."""
        return self.form["version"] in (KEPT, ROUNDED_ENTRIES)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def is_document(file: Path) -> bool:
    """Return whether a file is a saved document of any version."""
    try:
        with safe_open(file, framework="numpy") as content:
            return (content.metadata() or {}).get("format") in (FORMAT, FORMAT_1)
    except (SafetensorError, OSError):
        return False


def stored(context: CompressedContext, bits: int | None = None) -> Stored:
    """Return a context of one row as a file holds it.

    Args:
        bits: of each number of slots or entries; as they are unless given.

    Raises:
        ConfigError: if they are not saved in so many.
        DataError: if a number cannot be.
    """
    if bits is not None:
        check_bits(bits)
    arrays, form = (_of_slots if context.kept is None else _of_entries)(context, bits)
    return Stored(arrays, form, int(context.length_B[0]))


def write(file: Path, content: Stored, about: About) -> int:
    """Write a context; returns the file's size in bytes.

    Raises:
        StorageError: if the disk is full or fails.
    """
    save_tensors(file, content.arrays, _metadata(content, about))
    return file.stat().st_size


def bytes_by_part(content: Stored, about: About) -> dict[str, int]:
    """Return the bytes of each part of the file that `write` writes: in all, those of the file.

    They are those of `PARTS` that it has, and its header: names, shapes and metadata.
    """
    arrays = content.arrays
    found = {
        part: sum(arrays[name].nbytes for name in names if name in arrays)
        for part, names in PARTS.items()
        if not arrays.keys().isdisjoint(names)
    }
    header = len(tensor_bytes(arrays, _metadata(content, about))) - content.nbytes
    return {**found, "header": header}


def _metadata(content: Stored, about: About) -> dict[str, str]:
    return {
        "format": FORMAT,
        **content.form,
        "gistjax": gistjax.__version__,
        "compressor": about.compressor,
        "base": about.base,
        "base_sha256": about.base_sha256,
        "tokens": str(about.tokens),
        "pieces": str(about.pieces),
        "positions": str(content.positions),
        **({"refined": str(about.refined)} if about.refined else {}),
    }


def _of_slots(
    context: CompressedContext, bits: int | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of slots, and what the metadata say of their form."""
    arrays = slots_of(context)
    if bits is None:
        return arrays, {"version": VERSION}
    dtype, width = arrays["x" if "x" in arrays else "k"].dtype.name, context.x_BxXxD.shape[2]
    form = {"version": ROUNDED_SLOTS, "bits": str(bits), "dtype": dtype, "width": str(width)}
    return round_slots(arrays, bits), form


def _of_entries(
    context: CompressedContext, bits: int | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of entries, and what the metadata say of their form."""
    entries = entries_of(context)
    bits = bits or entries.bits
    if bits is None:
        return file_arrays(entries), {"version": KEPT}
    form = {"version": ROUNDED_ENTRIES, "bits": str(bits), "dtype": entries.k_TxH.dtype.name}
    if bits == entries.bits:
        return file_arrays(entries), form  # rounding them again would change them
    return round_entries(entries.numbers(), bits), form


def read(file: Path, compressor: str, base_sha256: str) -> tuple[Stored, dict[str, int]]:
    """Return what a file holds, and its numbers of tokens, pieces and refined steps.

    Args:
        compressor: SHA-256 of the one that is to read it.
        base_sha256: of the base in use.

    Raises:
        CheckpointError: if the file is missing, damaged or no document, of a later version, or of
            another compressor or base.
    """
    arrays, metadata = load_tensors(file)
    kind, version = metadata.get("format"), metadata.get("version")
    if kind not in (FORMAT, FORMAT_1):
        raise CheckpointError(f"{file} holds no document: give a file that --save or `save` wrote.")
    if kind == FORMAT and version not in FORMS:
        raise CheckpointError(
            f"{file} is a document of version {version}, written by gistjax "
            f"{metadata.get('gistjax')}; this is {gistjax.__version__}, which reads 1 to "
            f"{ROUNDED_SLOTS}: update gistjax, or compress the text again."
        )
    if not (metadata.get("base_sha256") or metadata.get("compressor")):
        raise CheckpointError(f"{file} does not say which base made it: compress the text again.")
    for what, theirs, ours in (
        ("compressor", metadata.get("compressor", ""), compressor),
        ("base", metadata.get("base_sha256", base_sha256), base_sha256),
    ):
        if theirs != ours:
            raise CheckpointError(
                f"{file} was made by another {what} (SHA-256 {theirs[:12]}…, this is "
                f"{ours[:12]}…): load that one, or compress the text again."
            )
    try:
        if kind == FORMAT_1:
            arrays, metadata = _from_version_1(arrays, metadata)
        form = {name: metadata[name] for name in ("version", *FORMS[metadata["version"]])}
        if form.get("bits") not in (None, *map(str, BITS)):
            raise CheckpointError(
                f"{file} has numbers in {form['bits']} bits, and this gistjax reads {widths()}: "
                "update gistjax, or compress the text again."
            )
        content = Stored(arrays, form, int(metadata["positions"]))
        numbers = {name: int(metadata[name]) for name in ("tokens", "pieces")}
        if content.of_entries and numbers["tokens"] < 1:
            raise ValueError("no tokens")
        return content, {**numbers, "refined": int(metadata.get("refined", 0))}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise not_whole(file, error) from error


def not_whole(file: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that lacks something."""
    return CheckpointError(
        f"{file} is no whole document ({type(error).__name__}: {error}): compress the text again."
    )


def _from_version_1(
    arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return arrays and metadata of a file of gistjax 0.1, which kept one padded row, as now."""
    slots = int(arrays["slots_B"][0])
    kept = {"position": arrays["position_BxX"][0, :slots]}
    if "k" in arrays:
        kept |= {name: arrays[name][:, 0, :, :slots] for name in ("k", "v")}
    else:
        kept["x"] = arrays["x_BxXxD"][0, :slots]
    return kept, {**metadata, "version": VERSION, "positions": str(int(arrays["length_B"][0]))}


def context_of(
    content: Stored, prefix_ids_P: np.ndarray, base: LlamaConfig, stacked: bool
) -> CompressedContext:
    """Return the context that a file holds, in numpy arrays; entries in few bits stay `Codes`.

    Args:
        prefix_ids_P: the prompt before it.
        base: sizes of the base.
        stacked: keep the layers of slots in one array, as the base does.

    Raises:
        KeyError, TypeError, ValueError, IndexError: if an array is missing, or is none of such a
            file.
    """
    arrays, form, bits = content.arrays, content.form, content.bits
    if content.of_entries:
        if bits is None:
            entries = Entries(arrays["k"], arrays["v"], arrays["count"])
        else:
            entries = coded_entries(arrays, bits, form["dtype"])
        return _unpack_entries(entries, content.positions, prefix_ids_P, base)
    if bits is not None:
        arrays = restore_slots(arrays, bits, form["dtype"], int(form["width"]))
    return unpack(arrays, content.positions, prefix_ids_P, base, stacked)


def unpack(
    arrays: dict[str, np.ndarray],
    positions: int,
    prefix_ids_P: np.ndarray,
    base: LlamaConfig,
    stacked: bool,
) -> CompressedContext:
    """Return the context of these slots, padded to a power of two; numpy arrays.

    Args:
        positions: rotary positions that it takes up.
        prefix_ids_P: the prompt before it.
        base: sizes of the base.
        stacked: keep the layers in one array, as the base does.

    Raises:
        KeyError, ValueError: if an array is missing, or of another shape than the base asks for.
    """
    position_S = arrays["position"]
    (S,) = position_S.shape
    X = power_of_two(S)
    valid_1xX = np.arange(X)[None] < S
    kv: Any = None
    if "x" in arrays:
        x_1xXxD = _padded(arrays["x"], (S, base.d_model), 0, X)[None]
    else:
        shape = (base.n_layers, base.n_kv_heads, S, base.head_dim)
        k, v = (_padded(arrays[name], shape, 2, X)[:, None] for name in ("k", "v"))
        kv = Cache(k, v) if stacked else Cache(tuple(k), tuple(v))
        x_1xXxD = np.zeros((1, X, base.d_model), k.dtype)  # not read where keys and values are
    one_row: dict[str, Any] = {
        "prefix_ids_P": prefix_ids_P,
        "x_BxXxD": x_1xXxD,
        "valid_BxX": valid_1xX,
        "cut_BxX": np.zeros_like(valid_1xX),
        "position_BxX": _padded(position_S, (S,), 0, X)[None],
        "length_B": np.asarray([positions], np.int32),
        "slots_B": np.asarray([S], np.int32),
    }
    return CompressedContext(kv=kv, **one_row)


def _unpack_entries(
    entries: Entries, positions: int, prefix_ids_P: np.ndarray, base: LlamaConfig
) -> CompressedContext:
    """Return the context of these entries, packed; numpy arrays.

    Raises:
        ValueError: if an array is of another shape than the base asks for.
    """
    k, v, count = entries.k_TxH, entries.v_TxH, entries.count_LxK
    shape = (int(count.sum()), base.head_dim)
    for array, wanted in ((count, (base.n_layers, base.n_kv_heads)), (k, shape), (v, shape)):
        if array.shape != wanted:
            raise ValueError(f"an array has shape {array.shape} instead of {wanted}")
    if count.dtype != np.int32 or count.min() < 0:
        raise ValueError("a number of entries is none")
    entries_a_head = -(-int(count.sum()) // count.size)
    no_position = np.zeros((1, 0), bool)
    one_row: dict[str, Any] = {
        "prefix_ids_P": prefix_ids_P,
        "x_BxXxD": np.zeros((1, 0, base.d_model), k.dtype),
        "valid_BxX": no_position,
        "cut_BxX": no_position,
        "position_BxX": np.zeros((1, 0), np.int32),
        "length_B": np.asarray([positions], np.int32),
        "slots_B": np.asarray([entries_a_head], np.int32),
    }
    return CompressedContext(kv=None, kept=packed(entries), **one_row)


def _padded(array: np.ndarray, shape: tuple[int, ...], axis: int, size: int) -> np.ndarray:
    """Return an array, whose shape is checked, with zeros up to a size along one axis."""
    if array.shape != shape:
        raise ValueError(f"an array has shape {array.shape} instead of {shape}")
    pads = [(0, 0)] * array.ndim
    pads[axis] = (0, size - shape[axis])
    return np.pad(array, pads)


LEAST_POSITIONS = 64


def power_of_two(length: int) -> int:
    """Return 64, or the least of its doubles that holds a length: few shapes, few compilations."""
    return max(LEAST_POSITIONS, 1 << (length - 1).bit_length())
