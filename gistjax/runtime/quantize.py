"""Numbers in few bits, groups of which share a scale. Pure numpy.

Weights are int8 with one symmetric scale a group (`quantize`). Keys and values are codes of 2 to 8
bits with a scale and an offset a group (`to_codes`), which are packed (`pack_bits`). What reads
codes, `unpack_bits` and `from_codes`, takes JAX arrays too, and may be compiled.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np

from gistjax.errors import ConfigError

LARGEST = 127
TINY = float(np.finfo(np.float32).tiny)

LEAST_HALF = float(np.finfo(np.float16).smallest_subnormal)

BITS = (8, 4, 3, 2)
"""Widths of codes."""


def widths() -> str:
    """Return the widths of codes in words: 8, 4, 3 or 2."""
    *first, last = map(str, BITS)
    return f"{', '.join(first)} or {last}"


def check_bits(bits: object) -> None:
    """Refuse widths in which no context is saved.

    Raises:
        ConfigError: saying which there are.
    """
    if not isinstance(bits, Integral) or bits not in BITS:
        raise ConfigError(f"bits={bits!r}: contexts are saved in {widths()} bits, or as they are.")


def quantize(array: np.ndarray, axes: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Round an array to int8 and fp32 scales: `values · scale` is within half a scale of it.

    Args:
        array: floating-point numbers.
        axes: along which numbers share a scale. They have size 1 in the scales.

    Raises:
        ValueError: if a number is not finite.
    """
    wide = array.astype(np.float32)
    if not np.isfinite(wide).all():
        raise ValueError("a number is not finite")
    largest = np.abs(wide).max(axis=axes, keepdims=True, initial=0)
    # A scale below the normal numbers would itself be rounded, by as much as it measures.
    scale = np.maximum(largest / LARGEST, np.float32(TINY))
    return np.rint(wide / scale).astype(np.int8), scale


def dequantize(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return fp32 numbers from int8 values and their scales, of any floating-point dtype."""
    return values.astype(np.float32) * scale.astype(np.float32)


def check_scales(values: np.ndarray, scale: np.ndarray) -> None:
    """Refuse scales that `quantize` does not give.

    Raises:
        ValueError: if they are not one for each group, positive and finite.
    """
    if scale.dtype.kind != "f":
        raise ValueError(f"its scales are {scale.dtype.name}")
    groups = zip(scale.shape, values.shape, strict=False)
    if scale.ndim != values.ndim or any(n not in (1, size) for n, size in groups):
        raise ValueError(f"its scales have shape {scale.shape}, its values {values.shape}")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("a scale is not finite and positive")


def to_codes(array: np.ndarray, axis: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, uint8, with scales and offsets, fp16; `from_codes` is within half a scale.

    Args:
        array: floating-point numbers.
        axis: along which numbers share scale and offset. It has size 1 in both.
        bits: 1 to 8; codes are below 2 to that power.

    Raises:
        ValueError: if a number is not finite, or beyond half precision.
    """
    wide, levels = array.astype(np.float32), np.float32(2**bits - 1)
    if not np.isfinite(wide).all():
        raise ValueError("a number is not finite")
    offset = -_half_above(-wide.min(axis=axis, keepdims=True))
    low = offset.astype(np.float32)
    # By reciprocals, as XLA divides: programs that train round alike (`gistjax.model.rounding`).
    scale = _half_above((wide.max(axis=axis, keepdims=True) - low) * (1 / levels))
    scale = np.maximum(scale, np.float16(LEAST_HALF))
    if not (np.isfinite(offset).all() and np.isfinite(scale).all()):
        raise ValueError("a number is beyond half precision")
    codes = np.rint((wide - low) * (1 / scale.astype(np.float32)))
    return np.clip(codes, 0, levels).astype(np.uint8), scale, offset


def from_codes(codes: Any, scale: Any, offset: Any) -> Any:
    """Return `codes · scale + offset` in fp32."""
    return codes.astype(np.float32) * scale.astype(np.float32) + offset.astype(np.float32)


def _half_above(x: np.ndarray) -> np.ndarray:
    """Return the least fp16 numbers that are not below x; infinite beyond the largest."""
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
        return np.where(half < x, np.nextafter(half, np.float16(np.inf)), half)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes as bytes, along the last axis: W codes in ⌈W · bits / 8⌉.

    The bits of a code stand behind those of the code before it, the lowest first, as bits stand in
    a byte: of 4 bits the first of two codes is low, of 3 bits eight codes take three bytes.
    """
    if bits == 8:
        return codes
    bits_WxN = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    rows, n = codes.shape[:-1], codes.shape[-1] * bits
    return np.packbits(bits_WxN.reshape(*rows, n), axis=-1, bitorder="little")


def unpack_bits(packed: Any, bits: int, width: int) -> Any:
    """Return the codes that `pack_bits` packed, so many along the last axis."""
    whole = math.lcm(bits, 8)  # bits of the fewest bytes that hold whole codes
    *rows, n_bytes = packed.shape
    groups, size = -(-n_bytes * 8 // whole), whole // 8
    pads = [*((0, 0) for _ in rows), (0, groups * size - n_bytes)]
    padded = packed.__array_namespace__().pad(packed, pads)
    byte = padded.reshape(*rows, groups, size).astype(np.uint32)
    word = sum(byte[..., i] << 8 * i for i in range(size))
    codes = word[..., None] >> np.arange(0, whole, bits, dtype=np.uint32) & 2**bits - 1
    return codes.reshape(*rows, groups * whole // bits)[..., :width].astype(np.uint8)
