"""Packed entries: of a context that was read, only what is kept, of all layers in one run.

What layers and KV heads keep differs, and from context to context. So the entries stand one behind
another, each KV head's together, and where those of one begin is data. The run's length and the
most entries of a KV head are rounded up: few shapes, few compilations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gistjax.compress.context import CompressedContext
from gistjax.model.codes import Codes
from gistjax.model.kv_cache import KeptLayer, PackedEntries

CLASSES_AN_OCTAVE = 16
LEAST = 16


def size_class(n: int, an_octave: int = CLASSES_AN_OCTAVE) -> int:
    """Return the least size that holds n, of so many from each power of two to the next."""
    if n <= LEAST:
        return LEAST
    octave = 1 << ((n - 1).bit_length() - 1)
    step = max(octave // an_octave, 1)
    return -(-n // step) * step


@dataclasses.dataclass(frozen=True)
class Entries:
    """The entries that are kept of one context, those of all layers one behind another."""

    k_TxH: Any  # by layer, then KV head, then position; rotated; an array, or codes
    v_TxH: Any
    count_LxK: np.ndarray  # int32, entries of each KV head

    @property
    def bits(self) -> int | None:
        """Bits of a number, where they are codes."""
        return self.k_TxH.bits if isinstance(self.k_TxH, Codes) else None

    def numbers(self) -> Entries:
        """The same entries, none of them codes."""
        if not isinstance(self.k_TxH, Codes):
            return self
        ranges = np.repeat(np.arange(len(self.k_TxH.scale)), self.count_LxK[self.count_LxK > 0])
        k_TxH, v_TxH = self.k_TxH.of(ranges).numbers(), self.v_TxH.numbers()
        return Entries(k_TxH, v_TxH, self.count_LxK)


def entries_of(context: CompressedContext, row: int = 0) -> Entries:
    """Return what is kept of one row of a context, each of whose rows is a context of its own."""
    kept: Any = context.kept
    if isinstance(kept, PackedEntries):
        count_LxK = np.asarray(kept.count)
        n, heads = int(count_LxK.sum()), int(np.count_nonzero(count_LxK))
        return Entries(_sized(kept.k_TxH, n, heads), _sized(kept.v_TxH, n, n), count_LxK)
    keys, values, counts = [], [], []
    for layer in _layers(kept):
        mask_KxX = np.asarray(layer.mask_BxKxX)[row]
        counts.append(mask_KxX.sum(1))
        keys.append(np.asarray(layer.k)[row][mask_KxX])
        values.append(np.asarray(layer.v)[row][mask_KxX])
    return Entries(np.concatenate(keys), np.concatenate(values), np.asarray(counts, np.int32))


def row_of(context: CompressedContext, row: int = 0) -> CompressedContext:
    """Return one row of a context, each of whose rows is a context of its own; entries packed.

    Numpy arrays in, and out: copies, which do not keep the other rows in memory.
    """
    rows = ("x_BxXxD", "valid_BxX", "cut_BxX", "position_BxX", "length_B", "slots_B")
    one: dict[str, Any] = {name: getattr(context, name)[row : row + 1].copy() for name in rows}
    if context.kept is not None:
        one["kept"] = packed(entries_of(context, row))
    kv = jax.tree.map(
        lambda x: x[..., row : row + 1, :, :, :].copy(), context.kv
    )  # [.., B, K, X, H]
    return dataclasses.replace(context, kv=kv, **one)


def mask_of(context: CompressedContext, row: int, tokens: int) -> np.ndarray:
    """Return which entries of a row's first so many tokens are kept, bool `[L, K, C]`."""
    masks = [np.asarray(layer.mask_BxKxX)[row, :, :tokens] for layer in _layers(context.kept)]
    return np.stack(masks)


def put_entries(
    context: CompressedContext, row: int, entries: Entries, mask_LxKxC: np.ndarray | None = None
) -> None:
    """Write entries where `entries_of` found as many, into masked numpy arrays.

    Args:
        mask_LxKxC: where they stand; by default where those of the row do.
    """
    start = 0
    for number, layer in enumerate(_layers(context.kept)):
        mask_KxX = np.asarray(layer.mask_BxKxX)[row]
        if mask_LxKxC is not None:
            mask_KxX[:] = False
            mask_KxX[:, : mask_LxKxC.shape[2]] = mask_LxKxC[number]
        end = start + int(mask_KxX.sum())
        np.asarray(layer.k)[row][mask_KxX] = entries.k_TxH[start:end]
        np.asarray(layer.v)[row][mask_KxX] = entries.v_TxH[start:end]
        start = end


def packed(entries: Entries, an_octave: int = CLASSES_AN_OCTAVE) -> PackedEntries:
    """Return the entries as a decoder reads them, in numpy arrays.

    Args:
        an_octave: lengths of the run from each power of two to the next.
    """
    count_LxK = entries.count_LxK
    size = size_class(int(count_LxK.sum()), an_octave)
    ranges = min(size_class(int(np.count_nonzero(count_LxK))), count_LxK.size)
    k_TxH, v_TxH = _sized(entries.k_TxH, size, ranges), _sized(entries.v_TxH, size, size)
    start_LxK = (np.cumsum(count_LxK) - count_LxK.ravel()).reshape(count_LxK.shape)
    most = min(size_class(int(count_LxK.max()), 1), size)
    arrays: tuple[Any, ...] = (k_TxH, v_TxH, start_LxK.astype(np.int32), count_LxK, most)
    return PackedEntries(*arrays)


def join_kept(contexts: Sequence[CompressedContext]) -> CompressedContext:
    """Join what is kept of contexts of one row each, all in one place.

    Each stays where it was read, right behind the prompt, and the question behind the longest: no
    distance is greater than in training, however many are joined. Of codes, their numbers are
    joined.

    Returns:
        numpy arrays.
    """
    kept = merged([entries_of(context).numbers() for context in contexts])
    count_LxK = kept.count_LxK
    numbers: dict[str, Any] = {
        "length_B": np.max([context.length_B for context in contexts], 0),
        "slots_B": np.asarray([-(-int(count_LxK.sum()) // count_LxK.size)], np.int32),
    }
    run = packed(kept, 1)  # any texts are joined: few lengths of these
    return dataclasses.replace(contexts[0], kept=run, **numbers)


def merged(parts: Sequence[Entries]) -> Entries:
    """Return the entries of all parts as one, those of each KV head part by part; no codes."""
    head_T = np.concatenate([_heads(part) for part in parts])
    order_T = np.argsort(head_T, kind="stable")
    k_TxH, v_TxH = (
        np.concatenate([getattr(part, name) for part in parts])[order_T]
        for name in ("k_TxH", "v_TxH")
    )
    count_LxK = np.stack([part.count_LxK for part in parts]).sum(0, dtype=np.int32)
    return Entries(k_TxH, v_TxH, count_LxK)


def _heads(entries: Entries) -> np.ndarray:
    """Number of each entry's layer and KV head, in their order."""
    return np.repeat(np.arange(entries.count_LxK.size), entries.count_LxK.ravel())


def _sized(x: Any, n: int, ranges: int) -> Any:
    """Return the first n rows, or codes and so many ranges; zeros where there are fewer."""

    def sized(x_TxH: Any, n: int) -> np.ndarray:
        first = np.asarray(x_TxH)[:n]
        return np.pad(first, ((0, n - len(first)), (0, 0)))

    if not isinstance(x, Codes):
        return sized(x, n)
    scale, offset = sized(x.scale, ranges), sized(x.offset, ranges)
    return dataclasses.replace(x, code_TxW=sized(x.code_TxW, n), scale=scale, offset=offset)


def _layers(kept: Any) -> Sequence[KeptLayer]:
    if isinstance(kept, tuple):
        return kept
    n = len(kept.k)
    return [KeptLayer(kept.k[i], kept.v[i], kept.mask_BxKxX[i]) for i in range(n)]
