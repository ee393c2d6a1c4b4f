"""Refinement of what is kept of single contexts: gradient steps on entries, the model frozen.

The same model answers questions on a context with all of its entries, which makes it the teacher;
keys and values of those that are kept then move until the answers' distributions with them alone
are near. No document knows of another: each has a loss of its own, and Adam is elementwise.

Shapes: E contexts, B = E·n rows of questions in their order, S tokens of a question and room for A
of its answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gistjax.compress.compressed_lm import CompressedLM, answer_positions
from gistjax.compress.context import CompressedContext
from gistjax.compress.decoding import continue_greedily
from gistjax.compress.select import kept_context, kept_of
from gistjax.model.kv_cache import Kept, KeptLayer
from gistjax.model.masks import lengths_to_valid

RATE = 0.02
"""Adam's first step, in the root mean square of a KV head's kept entries; it falls to zero."""
B1, B2 = 0.9, 0.95


class Asked(NamedTuple):
    """Questions on contexts, and how long the answers are that the teacher gives."""

    tokens_BxS: Array  # question and answer, right padded
    question_length_B: Array
    answer_length_B: Array  # 0 where there is no question


def refine(
    model: CompressedLM,
    prefix_ids_P: Array,
    context: tuple[Array, Array],
    questions: tuple[Array, Array],
    steps: Array | int,
    max_tokens: int,
    end_ids: Sequence[int],
    ratio: float | None = None,
) -> tuple[CompressedContext, Array]:
    """Read contexts and keep entries as a `Selector` does, then refine those.

    Args:
        context: ids `[E, C]` and lengths `[E]`.
        questions: ids `[B, S]` and lengths `[B]`; a row of length 1 is none.
        steps: of Adam.
        max_tokens: A, the longest answer.
        ratio: tokens an entry; by default the configured one.

    Returns:
        What is kept, and each context's loss before and after, `[2, E]`.
    """
    selector = model.selector
    assert selector is not None
    ids_ExC, length_E = context
    E, C = ids_ExC.shape
    cache, score_LxExKxC = selector.read(model.base, model.lora, prefix_ids_P, context)
    kept_LxExKxC = selector.choose(score_LxExKxC, length_E, selector.entries(length_E, ratio))
    all_LxExKxC = jnp.broadcast_to(lengths_to_valid(length_E, C)[:, None], kept_LxExKxC.shape)
    nothing = model.base.embed(ids_ExC[:, :0])

    def read(kept: Kept) -> CompressedContext:
        return kept_context(prefix_ids_P, nothing, kept, length_E)

    P = prefix_ids_P.shape[0]
    whole, start = (kept_of(cache, P, C, mask) for mask in (all_LxExKxC, kept_LxExKxC))
    asked = _with_answers(model, read(whole), questions, max_tokens, end_ids)
    teacher_BxAxD = _states(model, read(whole), asked, max_tokens)
    scale = [_size(layer) for layer in _layers(start)]

    def losses(change: Any) -> Array:
        h_BxAxD = _states(model, read(_moved(start, scale, change)), asked, max_tokens)
        return _divergence(model, teacher_BxAxD, h_BxAxD, asked, E)

    def step(_: Array, carry: Any) -> Any:
        change, state = carry
        gradient = jax.grad(lambda change: jnp.sum(losses(change)))(change)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(change, update), state

    optimizer = optax.adam(lambda done: RATE * (1 - done / steps), B1, B2)
    change = [jax.tree.map(_zeros, (layer.k, layer.v)) for layer in _layers(start)]
    before_E = losses(change)
    change, _ = jax.lax.fori_loop(0, steps, step, (change, optimizer.init(change)))
    after_E = losses(change)
    better_E = after_E < before_E  # not where nothing is thrown away: there Adam strays
    change = jax.tree.map(lambda x: jnp.where(better_E[:, None, None, None], x, 0.0), change)
    slots_E = -(-jnp.sum(kept_LxExKxC, axis=(0, 2, 3)) // selector.heads)
    refined = read(_moved(start, scale, change))
    loss_2xE = jnp.stack([before_E, jnp.where(better_E, after_E, before_E)])
    return dataclasses.replace(refined, slots_B=slots_E), loss_2xE


def _answers(
    model: CompressedLM,
    context: CompressedContext,
    tokens_BxS: Array,
    length_B: Array,
    max_tokens: int,
    end_ids: Sequence[int],
) -> Array:
    """Answers to n questions on each context, `[B, A]`."""
    S = tokens_BxS.shape[1]
    state = model.prefill(context, S + max_tokens)
    state = state.repeat(len(tokens_BxS) // len(context.length_B))
    h_Bx1xD, state = model.append(tokens_BxS, state, length_B[:, None] - 1, length_B)
    return continue_greedily(model, h_Bx1xD[:, 0], state, max_tokens, end_ids).ids_BxA


def _with_answers(
    model: CompressedLM,
    whole: CompressedContext,
    questions: tuple[Array, Array],
    max_tokens: int,
    end_ids: Sequence[int],
) -> Asked:
    """Questions with the answers that the whole context gives behind them."""
    tokens_BxS, length_B = questions
    ids_BxA = _answers(model, whole, tokens_BxS, length_B, max_tokens, end_ids)
    ends_BxA = jnp.isin(ids_BxA, jnp.asarray(end_ids))
    written_B = jnp.sum(jnp.cumsum(ends_BxA, axis=1) == 0, axis=1) + 1
    answer_B = jnp.where(length_B > 1, jnp.minimum(written_B, max_tokens), 0)
    padded = jnp.pad(tokens_BxS, ((0, 0), (0, max_tokens)))
    number = jnp.arange(padded.shape[1]) - length_B[:, None]
    answer = jnp.take_along_axis(ids_BxA, jnp.clip(number, 0, max_tokens - 1), axis=1)
    return Asked(jnp.where(number >= 0, answer, padded), length_B, answer_B)


def _states(
    model: CompressedLM, context: CompressedContext, asked: Asked, max_tokens: int
) -> Array:
    """The states that predict the answers, `[B, A, D]`."""
    B, S = asked.tokens_BxS.shape
    state = model.prefill(context, S).repeat(B // len(context.length_B))
    positions_BxA = answer_positions(asked.question_length_B, max_tokens, S)
    length_B = asked.question_length_B
    return model.append(asked.tokens_BxS, state, positions_BxA, length_B)[0]


def _divergence(
    model: CompressedLM, teacher_BxAxD: Array, h_BxAxD: Array, asked: Asked, contexts: int
) -> Array:
    """Mean over each context's answer tokens of the divergence from the teacher, `[E]`."""
    target, found = (jax.nn.log_softmax(model.base.logits(h)) for h in (teacher_BxAxD, h_BxAxD))
    loss_BxA = jnp.sum(jnp.exp(target) * (target - found), axis=-1)
    real_BxA = lengths_to_valid(asked.answer_length_B, loss_BxA.shape[1])
    loss_E, real_E = (
        jnp.sum(x.reshape(contexts, -1), axis=1)
        for x in (jnp.where(real_BxA, loss_BxA, 0.0), real_BxA)
    )
    return loss_E / jnp.maximum(real_E, 1)


def _layers(kept: Kept) -> tuple[KeptLayer, ...]:
    return kept if isinstance(kept, tuple) else (kept,)


def _size(layer: KeptLayer) -> tuple[Array, Array]:
    """Root mean square of the kept entries of each KV head, by channel, `[…, K, 1, H]`."""
    mask = layer.mask_BxKxX[..., None].astype(jnp.float32)
    number = jnp.maximum(jnp.sum(mask, axis=-2, keepdims=True), 1)

    def of(x: Array) -> Array:
        square = jnp.square(x.astype(jnp.float32)) * mask
        return jnp.sqrt(jnp.sum(square, axis=-2, keepdims=True) / number)

    return of(layer.k), of(layer.v)


def _zeros(x: Array) -> Array:
    return jnp.zeros(x.shape, jnp.float32)


def _moved(start: Kept, scale: Any, change: Any) -> Kept:
    """Entries with a change of so many times their size."""

    def moved(x: Array, size: Array, by: Array) -> Array:
        return (x.astype(jnp.float32) + size * by).astype(x.dtype)

    layers = tuple(
        dataclasses.replace(layer, k=moved(layer.k, *k), v=moved(layer.v, *v))
        for layer, k, v in (
            (layer, (sizes[0], by[0]), (sizes[1], by[1]))
            for layer, sizes, by in zip(_layers(start), scale, change, strict=True)
        )
    )
    return layers if isinstance(start, tuple) else layers[0]
