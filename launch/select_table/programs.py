"""What runs on the device: contexts are read and scored once, then answered from at every budget.

A budget is data: a mask over the entries of a context. The rows of one answering batch are N
questions times J cells (a spread and a ratio); the J rows of a question share its context's
entries. So one program for each shape answers for all scorers, spreads and ratios.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.context import CompressedContext, soft_context
from gistjax.compress.decoding import greedy
from gistjax.compress.select import kept_of
from gistjax.data.example import Batch
from gistjax.model.kv_cache import Kept, KeptLayer

Model = tuple[Any, Any, Any]
"""Structure, trained leaves, frozen leaves."""


@dataclasses.dataclass(frozen=True)
class Contexts:
    """A batch of contexts that were read, and what is kept of them in each cell."""

    prefix_ids_P: Array
    length_E: Array
    kept: Kept  # entries of the whole contexts
    marks_JxLxExKxC: Array  # True where an entry is kept
    entries_JxE: Array  # how many those are
    question_size: int  # tokens that questions are padded to


class Programs:
    """Programs that are compiled once for each shape, and the seconds that they ran.

    Args:
        decoder: the full-context model, which answers.
        max_tokens: of an answer.
    """

    def __init__(self, decoder: Model, max_tokens: int, end_ids: Sequence[int]):
        self._decoder, self._compiled = decoder, dict[Any, Callable[..., Any]]()
        self.seconds: dict[str, float] = defaultdict(float)

        def run(trainable: Any, frozen: Any, *given: Any) -> Array:
            model = nnx.merge(decoder[0], trainable, frozen)
            context, tokens_BxS, length_B = _rows(model.base, *given)
            return greedy(model, context, tokens_BxS, length_B, max_tokens, end_ids).ids_BxA

        self._answer = jax.jit(run)

    def read(
        self, scorer: Model, batch: Batch, cells: dict[str, Sequence[float]], asks: bool
    ) -> Contexts:
        """Read a batch of contexts and choose what is kept at every spread and ratio.

        Args:
            scorer: a model that selects, the weights of its decoder those that answer.
            cells: ratios by spread.
            asks: show the scorer the questions, one for each context.
        """
        graphdef, *weights = scorer
        question = (batch.tokens_BxS, batch.question_length_B) if asks else ()
        given = (batch.prefix_ids_P, batch.context_ids_ExC, batch.context_length_E, *question)
        reads = jax.jit(partial(_read, graphdef))
        kept, score = self._run("read", (graphdef, asks), reads, (*weights, *given))
        found = []
        for spread, ratios in cells.items():
            arguments = (*weights, score, batch.context_length_E, jnp.asarray(ratios, jnp.float32))
            choose = jax.jit(partial(_choose, graphdef, spread))
            found.append(self._run(spread, graphdef, choose, arguments))
        marks, entries = zip(*found, strict=True)
        return Contexts(
            batch.prefix_ids_P,
            batch.context_length_E,
            kept,
            jnp.concatenate(marks),
            jnp.concatenate(entries),
            batch.tokens_BxS.shape[1],
        )

    def answer(self, contexts: Contexts, owner_N: Any, tokens_NxS: Any, length_N: Any) -> Array:
        """Answer questions at every cell: token ids `[N, J, A]`.

        Args:
            owner_N: the context of each.
        """
        given = (
            contexts.prefix_ids_P,
            contexts.kept,
            contexts.marks_JxLxExKxC,
            contexts.length_E,
            *(jnp.asarray(x) for x in (owner_N, tokens_NxS, length_N)),
        )
        ids_BxA: Array = self._run("answer", (), self._answer, (*self._decoder[1:], *given))
        return ids_BxA.reshape(len(owner_N), -1, ids_BxA.shape[1])

    def _run(self, kind: str, name: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Run a program, compiled ahead of the clock; the seconds go to its kind."""
        key = (kind, name, *(x.shape for x in jax.tree.leaves(arguments[2:])))
        if key not in self._compiled:
            self._compiled[key] = function.lower(*arguments).compile()
        start = time.perf_counter()
        result = jax.block_until_ready(self._compiled[key](*arguments))
        self.seconds[kind] += time.perf_counter() - start
        return result


def _read(
    graphdef: Any,
    trainable: Any,
    frozen: Any,
    prefix_ids_P: Array,
    ids_ExC: Array,
    length_E: Array,
    *question: Array,
) -> tuple[Kept, Array]:
    """Entries of contexts, all of them, and their scores `[L, E, K, C]`."""
    model = nnx.merge(graphdef, trainable, frozen)
    asked = (question[0], question[1]) if question else None
    cache, score_LxExKxC = model.selector.read(
        model.base, model.lora, prefix_ids_P, (ids_ExC, length_E), asked
    )
    whole_LxExKxC = jnp.ones(score_LxExKxC.shape, bool)
    return kept_of(cache, len(prefix_ids_P), ids_ExC.shape[1], whole_LxExKxC), score_LxExKxC


def _choose(
    graphdef: Any,
    spread: str,
    trainable: Any,
    frozen: Any,
    score_LxExKxC: Array,
    length_E: Array,
    ratio_R: Array,
) -> tuple[Array, Array]:
    """What is kept at each ratio `[R, L, E, K, C]`, and how many entries that are `[R, E]`."""
    selector = nnx.merge(graphdef, trainable, frozen).selector

    def at(ratio: Array) -> Array:
        total_E = selector.entries(length_E, jnp.broadcast_to(ratio, length_E.shape))
        marks_LxExKxC: Array = selector.choose(score_LxExKxC, length_E, total_E, spread)
        return marks_LxExKxC

    marks_RxLxExKxC = jax.vmap(at)(ratio_R)  # scores are sorted once
    return marks_RxLxExKxC, jnp.sum(marks_RxLxExKxC, (1, 3, 4), dtype=jnp.int32)


def _rows(
    base: Any,
    prefix_ids_P: Array,
    kept: Kept,
    marks_JxLxExKxC: Array,
    length_E: Array,
    owner_N: Array,
    tokens_NxS: Array,
    length_N: Array,
) -> tuple[CompressedContext, Array, Array]:
    """A row for each question and cell: what it reads of its context, and its tokens."""
    J, L, _, K, C = marks_JxLxExKxC.shape
    marks_LxNxJxKxC = jnp.moveaxis(marks_JxLxExKxC[:, :, owner_N], 0, 2)
    marks_LxBxKxC = marks_LxNxJxKxC.reshape(L, -1, K, C)
    if isinstance(kept, tuple):
        rows: Kept = tuple(
            KeptLayer(layer.k[owner_N], layer.v[owner_N], marks)
            for layer, marks in zip(kept, jnp.unstack(marks_LxBxKxC), strict=True)
        )
    else:
        rows = KeptLayer(kept.k[:, owner_N], kept.v[:, owner_N], marks_LxBxKxC)
    tokens_BxS, length_B, context_B = (
        jnp.repeat(x, J, axis=0) for x in (tokens_NxS, length_N, length_E[owner_N])
    )
    nothing = soft_context(prefix_ids_P, base.embed(tokens_BxS[:, :0]), jnp.zeros_like(length_B))
    context = dataclasses.replace(nothing, kept=rows, length_B=context_B, slots_B=context_B)
    return context, tokens_BxS, length_B
