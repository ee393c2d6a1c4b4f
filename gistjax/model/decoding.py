"""Greedy decoding with the cache, as one loop on the device that ends when every row has."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.model.cache import Cache
from gistjax.model.compressor import CompressedLM, Memory


class _Loop(NamedTuple):
    step: Array
    ids_B: Array  # the token that each row has just chosen
    done_B: Array
    answer_BxA: Array
    visible_BxU: Array
    cache: Cache


def greedy(
    model: CompressedLM,
    memory: Memory,
    tokens_BxS: Array,
    length_B: Array,
    max_tokens: int,
    end_id: int,
) -> Array:
    """The most likely answer, token by token.

    Args:
        memory: what stands in place of the context.
        tokens_BxS: questions, right padded; whatever stands past `length_B` is not read.
        length_B: question lengths, at least 1.
        max_tokens: A, the longest answer.
        end_id: ends a row's answer and fills the rest of it.

    Returns:
        Answers `[B, A]` int32. A row's answer does not depend on the other rows.
    """
    last_BxD, cache, visible_BxU, position_B = model.prefill(
        memory, tokens_BxS, length_B, max_tokens
    )
    first_free = visible_BxU.shape[1] - max_tokens

    def choose(h_BxD: Array, done_B: Array) -> Array:
        best_B = jnp.argmax(model.base.logits(h_BxD), axis=-1).astype(jnp.int32)
        return jnp.where(done_B, end_id, best_B)

    def unfinished(loop: _Loop) -> Array:
        return (loop.step < max_tokens) & ~jnp.all(loop.done_B)

    def step(loop: _Loop) -> _Loop:
        answer_BxA = jax.lax.dynamic_update_slice(
            loop.answer_BxA, loop.ids_B[:, None], (0, loop.step)
        )
        done_B = loop.done_B | (loop.ids_B == end_id)
        h_BxD, cache, visible_BxU = model.decode(
            loop.ids_B, position_B + loop.step, loop.visible_BxU, loop.cache, first_free + loop.step
        )
        return _Loop(loop.step + 1, choose(h_BxD, done_B), done_B, answer_BxA, visible_BxU, cache)

    nobody_B = jnp.zeros(length_B.shape, bool)
    start = _Loop(
        step=jnp.zeros((), jnp.int32),
        ids_B=choose(last_BxD, nobody_B),
        done_B=nobody_B,
        answer_BxA=jnp.full((length_B.shape[0], max_tokens), end_id, jnp.int32),
        visible_BxU=visible_BxU,
        cache=cache,
    )
    return jax.lax.while_loop(unfinished, step, start).answer_BxA
