"""The sequence that a decoder reads in one pass: prefix · compressed context · tokens."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.compress.context import CompressedContext
from gistjax.model.llama import Llama
from gistjax.model.masks import lengths_to_valid


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sequence:
    """Embeddings, and who may look at them."""

    x_BxTxD: Array
    valid_BxT: Array  # real positions
    cut_BxT: Array  # hidden from those after the cut
    after_BxT: Array
    position_BxT: Array  # rotary

    def compact(self) -> Sequence:
        """Real positions first, in their order, padding last.

        Where nothing is cut, causality is then mask enough.
        """
        order_BxT = jnp.argsort(~self.valid_BxT, axis=1, stable=True)
        compact: Sequence = jax.tree.map(lambda x: jax.vmap(_permute)(x, order_BxT), self)
        return compact


def _permute(x_Tx: Array, order_T: Array) -> Array:
    return x_Tx.at[order_T].get(mode="promise_in_bounds", unique_indices=True)


def make_sequence(
    base: Llama,
    context: CompressedContext,
    tokens_BxS: Array | None = None,
    length_B: Array | None = None,
) -> Sequence:
    """Put the prefix, the context and, if there are any, tokens one behind another.

    Where slots are kept as keys and values, what went in only holds their place.
    """
    B, X = context.valid_BxX.shape
    D, P = base.config.d_model, context.prefix_ids_P.shape[0]
    prefix_PxD = base.embed(context.prefix_ids_P)
    real_BxP, nobody_BxX = jnp.ones((B, P), bool), jnp.zeros((B, X), bool)
    place_BxP = jnp.broadcast_to(jnp.arange(P, dtype=jnp.float32), (B, P))
    parts = [
        Sequence(
            jnp.broadcast_to(prefix_PxD, (B, P, D)), real_BxP, ~real_BxP, ~real_BxP, place_BxP
        ),
        Sequence(
            context.x_BxXxD,
            context.valid_BxX,
            context.cut_BxX,
            nobody_BxX,
            P + context.position_BxX.astype(jnp.float32),
        ),
    ]
    if tokens_BxS is not None and length_B is not None:
        S = tokens_BxS.shape[1]
        valid_BxS = lengths_to_valid(length_B, S)
        nobody_BxS = jnp.zeros_like(valid_BxS)
        place_BxS = (first_position(context)[:, None] + jnp.arange(S)).astype(jnp.float32)
        x_BxSxD = base.embed(tokens_BxS)
        parts.append(Sequence(x_BxSxD, valid_BxS, nobody_BxS, ~nobody_BxS, place_BxS))
    sequence: Sequence = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
    return sequence


def first_position(context: CompressedContext) -> Array:
    """The rotary position of the first token behind a context, `[B]`."""
    return context.prefix_ids_P.shape[0] + context.length_B


def first_place(context: CompressedContext) -> Array:
    """The place of the first token behind a context in the compact sequence, `[B]`."""
    return context.prefix_ids_P.shape[0] + jnp.sum(context.valid_BxX, axis=1)


def places_of(
    context: CompressedContext, tokens_BxS: Array, logit_positions_BxW: Array | None
) -> Array:
    """Return the places of tokens, given by number, in the compact sequence, at most its last."""
    S = tokens_BxS.shape[1]
    if logit_positions_BxW is None:
        logit_positions_BxW = jnp.arange(S)[None]
    last = context.prefix_ids_P.shape[0] + context.size + S - 1
    return jnp.minimum(first_place(context)[:, None] + logit_positions_BxW, last)
