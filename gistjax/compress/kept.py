"""Packed entries: of a context that was read, only what is kept, each layer's in one row.

What KV heads keep differs, so a layer's entries of all its KV heads stand in one row, and a mask
says whose each is. Rows are as long as those of the longest context of a class of lengths would
be: few shapes, few compilations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gistjax.compress.context import CompressedContext
from gistjax.model.kv_cache import KeptLayer

CLASSES_AN_OCTAVE = 16
LEAST = 16


def size_class(n: int) -> int:
    """Return the least size that holds n, of sixteen from each power of two to the next."""
    if n <= LEAST:
        return LEAST
    octave = 1 << ((n - 1).bit_length() - 1)
    step = max(octave // CLASSES_AN_OCTAVE, 1)
    return -(-n // step) * step


@dataclasses.dataclass(frozen=True)
class Entries:
    """The entries that are kept of one context, those of all layers one behind another."""

    k_TxH: np.ndarray  # by layer, then KV head, then position; rotated
    v_TxH: np.ndarray
    count_LxK: np.ndarray  # int32, entries of each KV head

    @property
    def totals(self) -> list[int]:
        """Entries of each layer."""
        totals: list[int] = self.count_LxK.sum(1).tolist()
        return totals


def entries_of(context: CompressedContext) -> Entries:
    """Return what is kept of a context of one row, in numpy arrays."""
    assert context.kept is not None
    keys, values, counts = [], [], []
    for layer in _layers(context.kept):
        mask_KxX = np.asarray(layer.mask_BxKxX)[0]
        counts.append(mask_KxX.sum(1))
        for k in range(len(mask_KxX)):
            row = k if layer.k.shape[1] > 1 else 0
            keys.append(np.asarray(layer.k)[0, row][mask_KxX[k]])
            values.append(np.asarray(layer.v)[0, row][mask_KxX[k]])
    count_LxK = np.asarray(counts, np.int32)
    return Entries(np.concatenate(keys), np.concatenate(values), count_LxK)


def packed(entries: Entries, sizes: Sequence[int], stacked: bool) -> Any:
    """Return the entries as a decoder reads them, a row for each layer; numpy arrays.

    Args:
        sizes: how long each layer's row is, at least its entries.
        stacked: the layers in one array, as the base keeps them: all rows are as long as the
            longest.
    """
    if stacked:
        sizes = [max(sizes)] * len(sizes)
    starts = np.cumsum([0, *entries.totals])
    layers = []
    for count_K, start, size in zip(entries.count_LxK, starts, sizes, strict=False):
        owner_X = np.repeat(np.arange(len(count_K)), count_K)
        n = len(owner_X)
        mask_KxX = np.zeros((len(count_K), size), bool)
        mask_KxX[owner_X, np.arange(n)] = True
        k, v = (
            np.pad(x[start : start + n], ((0, size - n), (0, 0)))[None, None]
            for x in (entries.k_TxH, entries.v_TxH)
        )
        arrays: tuple[Any, ...] = (k, v, mask_KxX[None])
        layers.append(KeptLayer(*arrays))
    if not stacked:
        return tuple(layers)
    return jax.tree.map(lambda *x: np.stack(x), *layers)


def _layers(kept: Any) -> Sequence[KeptLayer]:
    if isinstance(kept, tuple):
        return kept
    n = len(kept.k)
    return [KeptLayer(kept.k[i], kept.v[i], kept.mask_BxKxX[i]) for i in range(n)]
