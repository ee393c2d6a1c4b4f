"""The compiled programs of an engine: compress a context, prefill its slots, answer a question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.context import CompressedContext, DecodeState
from gistjax.compress.decoding import Written, continue_greedily
from gistjax.compress.kept import row_of
from gistjax.compress.sequence import first_position
from gistjax.inference.recent import Recent
from gistjax.runtime.sharding import put_batch, rows_per_step, to_host

KEPT_PROGRAMS = 32
"""Compiled programs that stay: one for each combination of function, shapes and ratio."""

KEPT_PROMPTS = 4
"""Prompts that stay as read, one for each room behind them."""


class Programs:
    """A model's functions, each compiled once for its shapes.

    All return what they made and the seconds that it took, compilation not counted, which
    `compile_s` sums up.

    Args:
        weights: structure, trained leaves and frozen leaves of the model.
        mesh: where these are, and what rows are split over.
        prefix_ids: the prompt before a context.
        max_tokens: A, the longest answer.
        end_ids: tokens that end an answer.
    """

    def __init__(
        self,
        weights: tuple[Any, ...],
        mesh: Mesh,
        prefix_ids: Sequence[int],
        max_tokens: int,
        end_ids: Sequence[int],
    ):
        graphdef, *self.leaves = weights
        self._mesh = mesh
        self.compile_s = 0.0
        self.prefix_ids_P = np.asarray(prefix_ids, np.int32)
        self.graphdef = graphdef
        self._compiled: Recent[Any] = Recent(KEPT_PROGRAMS)
        self._prompts: Recent[DecodeState] = Recent(KEPT_PROMPTS)

        def compress(
            leaves: Any, prefix_ids_P: Array, ids_BxC: Array, length_B: Array, ratio: float
        ) -> Any:
            return nnx.merge(graphdef, *leaves).compress(prefix_ids_P, ids_BxC, length_B, ratio)

        def prefill(leaves: Any, context: CompressedContext, room: int) -> DecodeState:
            state: DecodeState = nnx.merge(graphdef, *leaves).prefill(context, room)
            return state

        def answer(leaves: Any, state: DecodeState, tokens_BxS: Array, length_B: Array) -> Written:
            model = nnx.merge(graphdef, *leaves)
            last_Bx1 = length_B[:, None] - 1
            h_Bx1xD, state = model.append(tokens_BxS, state, last_Bx1, length_B)
            return continue_greedily(model, h_Bx1xD[:, 0], state, max_tokens, end_ids)

        self._compress = jax.jit(compress, static_argnums=4)
        self._prefill = jax.jit(prefill, static_argnums=2)
        self._answer = jax.jit(answer)

    def __len__(self) -> int:
        """Return how many programs are compiled, of those that stay."""
        return len(self._compiled)

    def model(self) -> CompressedLM:
        """Return base, adapter and compressor as one module."""
        model: CompressedLM = nnx.merge(self.graphdef, *self.leaves)
        return model

    def compress(
        self, ids: Sequence[np.ndarray], size: int, ratio: float
    ) -> tuple[list[CompressedContext], float]:
        """Compress the token ids of contexts, each padded to `size`; numpy arrays.

        As many rows as there are shares of the mesh, or a multiple, are split over it.
        """
        rows: Any = padded(ids, size)
        if len(ids) % rows_per_step(self._mesh) == 0:
            rows = put_batch(rows, self._mesh)
        context, seconds = self._timed(self._compress, self.prefix_ids_P, *rows, static=(ratio,))
        context = to_host(context)
        return [row_of(context, row) for row in range(len(ids))], seconds

    def prefill(self, context: CompressedContext, room: int) -> tuple[DecodeState, float]:
        """Read prompt and slots, with room for so many tokens.

        Of entries the prompt alone, once for all contexts: they stand beside it.
        """
        if context.kept is None:
            return self._timed(self._prefill, context, static=(room,))
        spent = 0.0

        def read() -> DecodeState:
            nonlocal spent
            alone = replace(context, kept=())
            state: DecodeState
            state, spent = self._timed(self._prefill, alone, static=(room,))
            return state

        state = self._prompts.get(room, read)
        cache = replace(state.cache, kept=context.kept)
        return replace(state, cache=cache, position_B=first_position(context)), spent

    def answer(
        self, state: DecodeState, ids: Sequence[np.ndarray], size: int
    ) -> tuple[Written, float]:
        """Answer the token ids of a question in each row, padded to `size`; numpy arrays."""
        written, seconds = self._timed(self._answer, state, *padded(ids, size))
        return jax.device_get(written), seconds

    def prepare_answer(self, state: DecodeState, rows: int, size: int) -> None:
        """Compile what answers so many questions, padded to `size`."""
        self._program(self._answer, (state, *padded([()] * rows, size)))

    def _timed(
        self, function: Any, *arguments: Any, static: tuple[Any, ...] = ()
    ) -> tuple[Any, float]:
        compiled = self._program(function, arguments, static)
        start = time.perf_counter()
        result: Any = jax.block_until_ready(compiled(self.leaves, *arguments))
        return result, time.perf_counter() - start

    def _program(
        self, function: Any, arguments: tuple[Any, ...], static: tuple[Any, ...] = ()
    ) -> Any:
        """Return a function compiled for the shapes of its arguments."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        start = time.perf_counter()
        compiled = self._compiled.get(
            (function, structure, shapes, static),
            lambda: function.lower(self.leaves, *arguments, *static).compile(),
        )
        self.compile_s += time.perf_counter() - start
        return compiled


def padded(ids: Sequence[Sequence[int] | np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of ids as `[B, size]` and their lengths `[B]`, int32."""
    ids_BxC = np.zeros((len(ids), size), np.int32)
    for row, own in zip(ids_BxC, ids, strict=True):
        row[: len(own)] = own
    return ids_BxC, np.asarray([*map(len, ids)], np.int32)
