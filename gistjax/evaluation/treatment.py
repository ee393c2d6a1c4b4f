"""What is done to slots or kept entries before they are asked: refined, and stored in few bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from gistjax.compress.context import CompressedContext
from gistjax.compress.kept import Entries, entries_of, mask_of, put_entries
from gistjax.compress.refiner import Refiner
from gistjax.compress.rounded import round_rows
from gistjax.data.batching import evaluation_batches
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.runtime.sharding import rows_per_step, to_host

REFINED_TOGETHER = 16
"""Contexts that a device refines at a time."""


class Refined:
    """Entries of contexts that were refined, each once, in so many steps."""

    def __init__(self, refiner: Refiner, steps: int):
        self._refiner, self._steps = refiner, steps
        self._of: dict[bytes, tuple[np.ndarray, Entries]] = {}  # by the context's tokens

    def add(
        self, weights: Any, rows: Sequence[TokenizedExample], mesh: Mesh, buckets: Buckets
    ) -> dict[str, Any]:
        """Refine the contexts of rows that are not yet; return what `metrics.json` says of it."""
        distinct = list({row.context_ids.tobytes(): row for row in rows}.values())
        distinct = [row for row in distinct if row.context_ids.tobytes() not in self._of]
        size, spent = REFINED_TOGETHER * rows_per_step(mesh), 0.0
        with tqdm(total=len(distinct), desc="refining", unit="context", disable=None) as bar:
            for indices, host in evaluation_batches(distinct, size, buckets):
                contexts = [distinct[i].context_ids for i in indices]
                tokens = host.context_ids_ExC.shape[1]
                kept, _, seconds = self._refiner(weights, contexts, tokens, self._steps, size)
                for row, ids in enumerate(contexts):
                    mask_LxKxC = mask_of(kept, row, max(len(ids), 1))
                    self._of[ids.tobytes()] = mask_LxKxC, entries_of(kept, row)
                spent += seconds
                bar.update(len(indices))
        each = spent / max(len(distinct), 1)
        about = {"steps": self._steps, "contexts": len(distinct), "seconds_per_context": each}
        return {"refined": about}

    def put(
        self, context: CompressedContext, rows: Sequence[TokenizedExample]
    ) -> CompressedContext:
        """Return a compressed context with the refined entries of its real rows, the first."""
        kept = jax.tree.map(np.array, to_host(context.kept))
        host = dataclasses.replace(context, kept=kept)
        for place, row in enumerate(rows):
            mask_LxKxC, entries = self._of[row.context_ids.tobytes()]
            put_entries(host, place, entries, mask_LxKxC)
        return dataclasses.replace(context, kept=_placed(kept, context.kept))


@dataclass(frozen=True)
class Treatment:
    """What is done to a compressed context before it is asked."""

    bits: int | None = None  # it is rounded as in a document that was saved in so many
    refined: Refined | None = None  # entries in place of its own

    def __call__(
        self, context: CompressedContext, rows: Sequence[TokenizedExample]
    ) -> tuple[CompressedContext, int]:
        """Return a context as it is stored, and the bytes of its first rows, which are real."""
        if self.refined:
            context = self.refined.put(context, rows)
        if self.bits is None:
            stored_B, size = context.stored()
            return context, size * int(to_host(stored_B)[: len(rows)].sum())
        rounded, size_R = round_rows(to_host(context), self.bits, len(rows))
        return _placed(rounded, context), int(size_R.sum())


def _placed(host: Any, like: Any) -> Any:
    """Return a tree of arrays on the devices of those of another."""
    return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), host, like)
