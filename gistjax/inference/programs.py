"""The compiled programs of an engine: compress a context, prefill its slots, answer a question."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.context import CompressedContext, DecodeState
from gistjax.compress.decoding import Written, continue_greedily
from gistjax.compress.kept import entries_of, packed
from gistjax.inference.recent import Recent

KEPT_PROGRAMS = 32
"""Compiled programs that stay: one for each combination of function, shapes and ratio."""


class Programs:
    """A model's functions on one row, each compiled once for its shapes.

    All return what they made and the seconds that it took, compilation not counted.

    Args:
        weights: structure, trained leaves and frozen leaves of the model.
        prefix_ids: the prompt before a context.
        max_tokens: A, the longest answer.
        end_ids: tokens that end an answer.
    """

    def __init__(
        self,
        weights: tuple[Any, ...],
        prefix_ids: Sequence[int],
        max_tokens: int,
        end_ids: Sequence[int],
    ):
        graphdef, *self.leaves = weights
        self.prefix_ids_P = np.asarray(prefix_ids, np.int32)
        self.graphdef = graphdef
        self._compiled: Recent[Any] = Recent(KEPT_PROGRAMS)

        def compress(
            leaves: Any, prefix_ids_P: Array, ids_1xC: Array, length_1: Array, ratio: float
        ) -> Any:
            return nnx.merge(graphdef, *leaves).compress(prefix_ids_P, ids_1xC, length_1, ratio)

        def prefill(leaves: Any, context: CompressedContext, room: int) -> DecodeState:
            state: DecodeState = nnx.merge(graphdef, *leaves).prefill(context, room)
            return state

        def answer(leaves: Any, state: DecodeState, tokens_1xS: Array, length_1: Array) -> Written:
            model = nnx.merge(graphdef, *leaves)
            last_1x1 = length_1[:, None] - 1
            h_1x1xD, state = model.append(tokens_1xS, state, last_1x1, length_1)
            return continue_greedily(model, h_1x1xD[:, 0], state, max_tokens, end_ids)

        self._compress = jax.jit(compress, static_argnums=4)
        self._prefill = jax.jit(prefill, static_argnums=2)
        self._answer = jax.jit(answer)

    def model(self) -> CompressedLM:
        """Return base, adapter and compressor as one module."""
        model: CompressedLM = nnx.merge(self.graphdef, *self.leaves)
        return model

    def compress(
        self, ids: Sequence[int] | np.ndarray, size: int, ratio: float
    ) -> tuple[CompressedContext, float]:
        """Compress the token ids of a context, padded to `size`; numpy arrays."""
        given = (self.prefix_ids_P, *padded(ids, size))
        context, seconds = self._timed(self._compress, *given, static=(ratio,))
        context = jax.device_get(context)
        if context.kept is not None:
            context = dataclasses.replace(context, kept=packed(entries_of(context)))
        return context, seconds

    def prefill(self, context: CompressedContext, room: int) -> tuple[DecodeState, float]:
        """Read prompt and slots, with room for so many tokens."""
        return self._timed(self._prefill, context, static=(room,))

    def answer(
        self, state: DecodeState, ids: Sequence[int] | np.ndarray, size: int
    ) -> tuple[list[int], float, float]:
        """Answer the token ids of a question, padded to `size`.

        Returns:
            A ids, padded with an end; the log-probability of those up to the end; seconds.
        """
        written, seconds = self._timed(self._answer, state, *padded(ids, size))
        return written.ids_BxA[0].tolist(), float(written.log_probability_B[0]), seconds

    def _timed(
        self, function: Any, *arguments: Any, static: tuple[Any, ...] = ()
    ) -> tuple[Any, float]:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((x.shape, x.dtype) for x in leaves)
        compiled = self._compiled.get(
            (function, structure, shapes, static),
            lambda: function.lower(self.leaves, *arguments, *static).compile(),
        )
        start = time.perf_counter()
        result: Any = jax.block_until_ready(compiled(self.leaves, *arguments))
        return result, time.perf_counter() - start


def padded(ids: Sequence[int] | np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids as `[1, size]` and their number as `[1]`, int32."""
    row = np.asarray(ids, np.int32)
    return np.pad(row, (0, size - len(row)))[None], np.asarray([len(row)], np.int32)
