"""Greedy decoding with the cache, as one loop on the device that ends when every row has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.context import CompressedContext, DecodeState

EndIds = int | Sequence[int]


class Written(NamedTuple):
    """Answers, and how sure the model is of them."""

    ids_BxA: Array  # int32
    log_probability_B: Array  # fp32, of all tokens up to the end, that which ends it included


class _Loop(NamedTuple):
    n: Array  # tokens chosen
    ids_B: Array  # the last of them
    done_B: Array
    written: Written
    state: DecodeState


def greedy(
    model: CompressedLM,
    context: CompressedContext,
    tokens_BxS: Array,
    length_B: Array,
    max_tokens: int,
    end_id: EndIds,
) -> Written:
    """The most likely answer, token by token.

    Args:
        context: what stands in place of the context.
        tokens_BxS: questions, right padded; whatever stands past `length_B` is not read.
        length_B: question lengths, at least 1.
        max_tokens: A, the longest answer.
        end_id: a token that ends a row's answer, or several; the first fills the rest of it.
    """
    last_Bx1 = length_B[:, None] - 1
    h_Bx1xD, state = model.prefill_with(context, tokens_BxS, length_B, max_tokens, last_Bx1)
    return continue_greedily(model, h_Bx1xD[:, 0], state, max_tokens, end_id)


def continue_greedily(
    model: CompressedLM,
    last_BxD: Array,
    state: DecodeState,
    max_tokens: int,
    end_id: EndIds,
    limit: Array | int | None = None,
) -> Written:
    """Return what `greedy` does, from the states of each question's last token and room behind it.

    Args:
        limit: stop after so many tokens, if that is fewer than `max_tokens`.
    """

    end_ids_N = jnp.atleast_1d(jnp.asarray(end_id, jnp.int32))

    def choose(h_BxD: Array, done_B: Array) -> tuple[Array, Array]:
        """Return the next tokens and their log-probabilities; nothing is added to what is done."""
        logits_BxV = model.base.logits(h_BxD)
        best_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
        chosen_B = jnp.max(logits_BxV, axis=-1) - jax.nn.logsumexp(logits_BxV, axis=-1)
        return jnp.where(done_B, end_ids_N[0], best_B), jnp.where(done_B, 0.0, chosen_B)

    def ends(ids_B: Array) -> Array:
        return jnp.isin(ids_B, end_ids_N)

    n_tokens = jnp.minimum(max_tokens, max_tokens if limit is None else limit)

    def unfinished(loop: _Loop) -> Array:
        return (loop.n < n_tokens) & ~jnp.all(loop.done_B)

    def step(loop: _Loop) -> _Loop:
        h_Bx1xD, state = model.decode_step(loop.ids_B[:, None], loop.state, loop.n - 1)
        ids_B, chosen_B = choose(h_Bx1xD[:, 0], loop.done_B)
        ids_BxA, sum_B = loop.written
        ids_BxA = jax.lax.dynamic_update_slice(ids_BxA, ids_B[:, None], (0, loop.n))
        written = Written(ids_BxA, sum_B + chosen_B)
        return _Loop(loop.n + 1, ids_B, loop.done_B | ends(ids_B), written, state)

    first_B, chosen_B = choose(last_BxD, jnp.zeros(last_BxD.shape[:1], bool))
    ids_BxA = jnp.full((last_BxD.shape[0], max_tokens), end_ids_N[0], jnp.int32)
    start = _Loop(
        n=jnp.ones((), jnp.int32),
        ids_B=first_B,
        done_B=ends(first_B),
        written=Written(ids_BxA.at[:, 0].set(first_B), chosen_B),
        state=state,
    )
    return jax.lax.while_loop(unfinished, step, start).written


def before_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """Return the ids of an answer up to the first that ends it."""
    end = next((place for place, token in enumerate(ids) if token in end_ids), len(ids))
    return list(ids[:end])
