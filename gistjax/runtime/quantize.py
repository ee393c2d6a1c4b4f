"""Numbers in 8 bits: each group of an array shares one symmetric scale. Pure numpy."""

from __future__ import annotations

import numpy as np

LARGEST = 127
TINY = float(np.finfo(np.float32).tiny)


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
