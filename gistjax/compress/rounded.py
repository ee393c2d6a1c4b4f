"""Compressed contexts in few bits, as a file holds them, and as they are read again.

Kept entries:

    k, v                 uint8 [entries, ⌈head · bits / 8⌉] codes, by layer, KV head and position
    k_scale, k_offset    fp16 [heads that keep any, head]   of each KV head's channels
    v_scale, v_offset    fp16 [entries, 1]                  of each entry
    count                int32 [layers, KV heads]           entries of each

Slots as keys and values are as many entries of every KV head, `position` beside them. Soft tokens:

    x                    uint8 [slots, ⌈D · bits / 8⌉]
    x_scale, x_offset    fp16 [slots, 1]                    of each slot
    position             [slots]                            as it is

A number is `code · scale + offset`; codes are packed by channel (`pack_bits`), of 3 bits eight in
three bytes. Keys have channels that are large in every entry, so each channel has a range of its
own; values have not (KIVI, Liu et al. 2024, arXiv:2402.02750). A KV head's keys cost 4 bytes a
channel beside their codes, a value 4 bytes an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gistjax.compress.context import CompressedContext
from gistjax.compress.kept import Entries, entries_of, put_entries
from gistjax.errors import DataError
from gistjax.model.codes import Codes
from gistjax.runtime.quantize import from_codes, pack_bits, to_codes, unpack_bits

DTYPES = ("float32", "bfloat16", "float16")


def round_entries(entries: Entries, bits: int) -> dict[str, np.ndarray]:
    """Return the arrays of a file in so many bits.

    Raises:
        DataError: if a number is not finite, or beyond half precision.
    """
    count_N = _counts(entries.count_LxK)
    k_TxH = np.empty(entries.k_TxH.shape, np.uint8)
    channels = (len(count_N), entries.k_TxH.shape[1])
    scale_NxH, offset_NxH = (np.empty(channels, np.float16) for _ in range(2))
    starts = np.cumsum([0, *count_N])
    try:
        for n, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            codes = to_codes(entries.k_TxH[start:end], 0, bits)
            k_TxH[start:end], scale_NxH[n], offset_NxH[n] = codes
        v_TxH, scale_Tx1, offset_Tx1 = to_codes(entries.v_TxH, 1, bits)
    except ValueError as error:
        raise DataError(f"entries cannot be kept in {bits} bits: {error}.") from error
    return {
        "k": pack_bits(k_TxH, bits),
        "k_scale": scale_NxH,
        "k_offset": offset_NxH,
        "v": pack_bits(v_TxH, bits),
        "v_scale": scale_Tx1,
        "v_offset": offset_Tx1,
        "count": entries.count_LxK,
    }


def coded_entries(arrays: Mapping[str, np.ndarray], bits: int, dtype: str) -> Entries:
    """Return what `round_entries` gave as codes of numbers in a dtype.

    Raises:
        KeyError, ValueError: if an array is missing, or is none that it gives.
    """
    wanted, count_LxK = _dtype(dtype), arrays["count"]
    if count_LxK.dtype != np.int32 or count_LxK.size == 0 or count_LxK.min() < 0:
        raise ValueError("a number of entries is none")
    count_N = _counts(count_LxK)
    T, H = int(count_N.sum()), arrays["k_scale"].shape[-1]
    for name in ("k", "v"):
        _check(name, arrays[name], np.uint8, (T, -(-H * bits // 8)))
    for part in ("scale", "offset"):
        _check(f"k_{part}", arrays[f"k_{part}"], np.float16, (len(count_N), H))
        _check(f"v_{part}", arrays[f"v_{part}"], np.float16, (T, 1))
    k_TxH, v_TxH = (
        Codes(arrays[x], arrays[f"{x}_scale"], arrays[f"{x}_offset"], bits, H, wanted) for x in "kv"
    )
    return Entries(k_TxH, v_TxH, count_LxK)


def file_arrays(entries: Entries) -> dict[str, np.ndarray]:
    """Return the arrays of a file; of codes those that `coded_entries` takes."""
    arrays: dict[str, np.ndarray] = {}
    for name, x in (("k", entries.k_TxH), ("v", entries.v_TxH)):
        if isinstance(x, Codes):
            arrays |= {name: x.code_TxW, f"{name}_scale": x.scale, f"{name}_offset": x.offset}
        else:
            arrays[name] = x
    return {**arrays, "count": entries.count_LxK}


def restore_entries(
    arrays: Mapping[str, np.ndarray], bits: int, dtype: str
) -> dict[str, np.ndarray]:
    """Return `k`, `v` `[entries, head]` in a dtype, and `count`, of what `round_entries` gave.

    Raises:
        KeyError, ValueError: if an array is missing, or is none that it gives.
    """
    return file_arrays(coded_entries(arrays, bits, dtype).numbers())


def slots_of(context: CompressedContext, row: int = 0) -> dict[str, np.ndarray]:
    """Return the slots in use of a row: `position` and `x` `[slots, D]`, or `k` and `v`.

    The latter are `[layers, KV heads, slots, head]`.
    """
    slots = int(context.slots_B[row])
    arrays = {"position": np.asarray(context.position_BxX)[row, :slots]}
    if context.kv is None:
        return {**arrays, "x": np.asarray(context.x_BxXxD)[row, :slots]}
    k, v = (np.stack(x)[:, row, :, :slots] for x in (context.kv.k, context.kv.v))
    return {**arrays, "k": k, "v": v}


def round_slots(arrays: Mapping[str, np.ndarray], bits: int) -> dict[str, np.ndarray]:
    """Return the arrays of a file in so many bits, of what `slots_of` gave.

    Raises:
        DataError: as `round_entries`.
    """
    position = {"position": arrays["position"]}
    if "x" in arrays:
        try:
            codes_SxD, scale_Sx1, offset_Sx1 = to_codes(arrays["x"], 1, bits)
        except ValueError as error:
            raise DataError(f"slots cannot be kept in {bits} bits: {error}.") from error
        codes = {"x": pack_bits(codes_SxD, bits), "x_scale": scale_Sx1, "x_offset": offset_Sx1}
        return {**position, **codes}
    *heads, S, H = arrays["k"].shape
    k_TxH, v_TxH = (arrays[name].reshape(-1, H) for name in ("k", "v"))
    return {**position, **round_entries(Entries(k_TxH, v_TxH, np.full(heads, S, np.int32)), bits)}


def restore_slots(
    arrays: Mapping[str, np.ndarray], bits: int, dtype: str, width: int
) -> dict[str, np.ndarray]:
    """Return what `slots_of` gave, in a dtype, of what `round_slots` made of it.

    Args:
        width: of soft tokens, D.

    Raises:
        KeyError, ValueError: if an array is missing, or is none that it gives.
    """
    position = {"position": arrays["position"]}
    (S,) = arrays["position"].shape
    if "x" not in arrays:
        back, count_LxK = restore_entries(arrays, bits, dtype), arrays["count"]
        if count_LxK.ndim != 2 or (count_LxK != S).any():
            raise ValueError("KV heads have other numbers of slots")
        shape = (*count_LxK.shape, S, back["k"].shape[1])
        return {**position, "k": back["k"].reshape(shape), "v": back["v"].reshape(shape)}
    _check("x", arrays["x"], np.uint8, (S, -(-width * bits // 8)))
    for part in ("x_scale", "x_offset"):
        _check(part, arrays[part], np.float16, (S, 1))
    codes_SxD = unpack_bits(arrays["x"], bits, width)
    x_SxD = from_codes(codes_SxD, arrays["x_scale"], arrays["x_offset"])
    return {**position, "x": x_SxD.astype(_dtype(dtype))}


def round_rows(
    context: CompressedContext, bits: int, rows: int
) -> tuple[CompressedContext, np.ndarray]:
    """Return a context whose first rows are as files would give them back.

    Args:
        context: in numpy arrays, its entries masked; it stays as it is.

    Returns:
        the context, and the bytes of each of those rows' arrays in a file, int64 `[rows]`.

    Raises:
        DataError: as `round_entries`.
    """
    whole = jax.tree.map(np.array, context)
    size_R = np.zeros(rows, np.int64)
    for row in range(rows):
        if context.kept is not None:
            entries = entries_of(context, row)
            arrays = round_entries(entries, bits)
            back = restore_entries(arrays, bits, entries.k_TxH.dtype.name)
            put_entries(whole, row, Entries(back["k"], back["v"], back["count"]))
        else:
            slots = slots_of(context, row)
            arrays = round_slots(slots, bits)
            dtype = slots["x" if "x" in slots else "k"].dtype.name
            _put_slots(whole, row, restore_slots(arrays, bits, dtype, context.x_BxXxD.shape[2]))
        size_R[row] = sum(array.nbytes for array in arrays.values())
    return whole, size_R


def _put_slots(context: CompressedContext, row: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write slots where `slots_of` found them, into numpy arrays."""
    slots = len(arrays["position"])
    if "x" in arrays:
        np.asarray(context.x_BxXxD)[row, :slots] = arrays["x"]
        return
    assert context.kv is not None
    for name, layers in (("k", context.kv.k), ("v", context.kv.v)):
        for layer, x_KxSxH in enumerate(arrays[name]):
            layers[layer][row, :, :slots] = x_KxSxH


def _dtype(name: str) -> Any:
    """Return the dtype of numbers that were rounded.

    Raises:
        ValueError: if it is none of theirs.
    """
    if name not in DTYPES:
        raise ValueError(f"numbers of dtype {name!r}")
    return jnp.dtype(name)


def _counts(count_LxK: np.ndarray) -> np.ndarray:
    """Return the entries of each KV head that keeps any."""
    count_N: np.ndarray = count_LxK[count_LxK > 0]
    return count_N


def _check(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    """Refuse an array that is none of a file.

    Raises:
        ValueError: saying why.
    """
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape} instead of {shape}")
    if array.dtype == np.float16 and not np.isfinite(array).all():
        raise ValueError(f"{name} has a number that is not finite")
    if name.endswith("scale") and not (array > 0).all():
        raise ValueError(f"{name} has a number that is not positive")
