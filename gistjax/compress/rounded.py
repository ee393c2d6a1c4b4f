"""Kept entries in few bits, as a file holds them, and as they are read again.

    k, v                 uint8 [entries, ⌈head · bits / 8⌉] codes, by layer, KV head and position
    k_scale, k_offset    fp16 [heads that keep any, head]   of each KV head's channels
    v_scale, v_offset    fp16 [entries, 1]                  of each entry
    count                int32 [layers, KV heads]           entries of each

A number is `code · scale + offset`; codes are packed by channel (`pack_bits`), of 3 bits eight in
three bytes. Keys have channels that are large in every entry, so each channel has a range of its
own; values have not (KIVI, Liu et al. 2024, arXiv:2402.02750). A KV head's keys cost 4 bytes a
channel beside their codes, a value 4 bytes an entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gistjax.compress.context import CompressedContext
from gistjax.compress.kept import Entries, entries_of, put_entries
from gistjax.errors import DataError
from gistjax.model.kv_cache import Kept
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


def restore_entries(
    arrays: Mapping[str, np.ndarray], bits: int, dtype: str
) -> dict[str, np.ndarray]:
    """Return `k`, `v` `[entries, head]` in a dtype, and `count`, of what `round_entries` gave.

    Raises:
        KeyError, ValueError: if an array is missing, or is none that it gives.
    """
    if dtype not in DTYPES:
        raise ValueError(f"entries of dtype {dtype!r}")
    count_LxK = arrays["count"]
    if count_LxK.dtype != np.int32 or count_LxK.size == 0 or count_LxK.min() < 0:
        raise ValueError("a number of entries is none")
    count_N = _counts(count_LxK)
    T, H = int(count_N.sum()), arrays["k_scale"].shape[-1]
    for name in ("k", "v"):
        _check(name, arrays[name], np.uint8, (T, -(-H * bits // 8)))
    for part in ("scale", "offset"):
        _check(f"k_{part}", arrays[f"k_{part}"], np.float16, (len(count_N), H))
        _check(f"v_{part}", arrays[f"v_{part}"], np.float16, (T, 1))
    scale_TxH, offset_TxH = (
        np.repeat(arrays[f"k_{part}"], count_N, axis=0) for part in ("scale", "offset")
    )
    k_TxH = from_codes(unpack_bits(arrays["k"], bits, H), scale_TxH, offset_TxH)
    v_TxH = from_codes(unpack_bits(arrays["v"], bits, H), arrays["v_scale"], arrays["v_offset"])
    wanted = jnp.dtype(dtype)
    return {"k": k_TxH.astype(wanted), "v": v_TxH.astype(wanted), "count": count_LxK}


def round_rows(context: CompressedContext, bits: int, rows: int) -> tuple[Kept, np.ndarray]:
    """Return what is kept of a context, its first rows as files would give them back.

    Args:
        context: of masked entries, in numpy arrays; it stays as it is.

    Returns:
        the entries, and the bytes of each of those rows' arrays in a file, int64 `[rows]`.

    Raises:
        DataError: as `round_entries`.
    """
    whole = dataclasses.replace(context, kept=jax.tree.map(np.array, context.kept))
    size_R = np.zeros(rows, np.int64)
    for row in range(rows):
        entries = entries_of(context, row)
        arrays = round_entries(entries, bits)
        back = restore_entries(arrays, bits, entries.k_TxH.dtype.name)
        put_entries(whole, row, Entries(back["k"], back["v"], back["count"]))
        size_R[row] = sum(array.nbytes for array in arrays.values())
    return whole.kept, size_R


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
