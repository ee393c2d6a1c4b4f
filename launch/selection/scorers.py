"""Learned scorers: how much an entry is worth, told from what a layer sees of the context.

None sees the question. All give logs of KVzip's score, which they are taught by regression, and are
cheap beside the layer. `new_scorer` makes one's leaves, `score` runs it in one layer. A gist scorer
also carries its tokens from layer to layer: `read_as_gist`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from launch.selection.attention import NEVER, Part, attend_and_weigh
from launch.selection.model import Base, Layers, Projected, finish, project, rope_angles

HIDDEN = 64
"""Channels of the MLP and the convolution."""

WINDOW = 9
"""Positions that the convolution reads."""

GISTS = 16
CROSS_QUERIES = 16
TYPICAL = -5.0
"""Scores begin at this log, about KVzip's mean."""


def new_scorer(name: str, base: Base, uniform: Callable[..., jax.Array]) -> Layers:
    """Return a scorer's fp32 leaves, stacked over layers.

    Args:
        uniform: draws from [-1, 1) in the shape of its arguments.
    """
    shape = base.shape
    L, K, H, D = shape.n_layers, shape.n_kv_heads, shape.head_dim, base.embedding_VxD.shape[1]
    if name == "linear":
        return {"w": jnp.zeros((L, D, K)), "c": jnp.full((L, K), TYPICAL)}
    if name == "mlp":
        w1, w2 = uniform(L, D, HIDDEN) / D**0.5, uniform(L, HIDDEN, K) * 0.01
        return {"w1": w1, "w2": w2, "c": jnp.full((L, K), TYPICAL)}
    if name == "conv":
        w1 = uniform(L, D, HIDDEN) / D**0.5
        filters = jnp.zeros((L, WINDOW, HIDDEN)).at[:, WINDOW // 2].set(1.0)
        filters = filters + uniform(L, WINDOW, HIDDEN) * 0.1
        w2 = uniform(L, HIDDEN, K) * 0.01
        return {"w1": w1, "f": filters, "w2": w2, "c": jnp.full((L, K), TYPICAL)}
    of_logs = {"s": jnp.ones((L, K)), "c": jnp.zeros((L, K))}  # scale and shift of log weights
    if name == "cross":
        return {"q": uniform(L, CROSS_QUERIES, K, H) * 0.1, **of_logs}
    words = jnp.array((base.prompt.repeat + base.prompt.prefix)[:GISTS])
    return {"emb": base.embedding_VxD[words].astype(jnp.float32), **of_logs}


class Real(NamedTuple):
    """Which positions hold tokens."""

    token_BxT: jax.Array  # prompt or context
    context_BxT: jax.Array


def score(name: str, w: Layers, seen: Projected, real: Real) -> jax.Array:
    """Return the scores of a layer's entries, fp32 `[B, K, T]`.

    Args:
        w: the scorer's leaves of that layer.
    """
    function = {"linear": _linear, "mlp": _mlp, "conv": _conv, "cross": _cross}[name]
    return function(w, seen, real).swapaxes(1, 2)


def _linear(w: Layers, seen: Projected, real: Real) -> jax.Array:
    return seen.normed_BxTxD.astype(jnp.float32) @ w["w"] + w["c"]


def _mlp(w: Layers, seen: Projected, real: Real) -> jax.Array:
    hidden = jax.nn.silu(seen.normed_BxTxD @ w["w1"].astype(seen.normed_BxTxD.dtype))
    return hidden.astype(jnp.float32) @ w["w2"] + w["c"]


def _conv(w: Layers, seen: Projected, real: Real) -> jax.Array:
    """Read a window over the states' projection; padding counts as zeros."""
    x = seen.normed_BxTxD
    T, around = x.shape[1], WINDOW // 2
    hidden = (x * real.token_BxT[..., None].astype(x.dtype)) @ w["w1"].astype(x.dtype)
    hidden = jnp.pad(hidden, ((0, 0), (around, around), (0, 0)))
    filters = w["f"].astype(x.dtype)
    hidden = sum(hidden[:, j : j + T] * filters[j] for j in range(WINDOW))
    return jax.nn.silu(hidden).astype(jnp.float32) @ w["w2"] + w["c"]


def _cross(w: Layers, seen: Projected, real: Real) -> jax.Array:
    """Let learned queries of each KV head attend to its unrotated keys; the strongest counts."""
    key = seen.unrotated_BxTxKxH
    logits = jnp.einsum(
        "jkh,btkh->bkjt", w["q"].astype(key.dtype), key, preferred_element_type=jnp.float32
    )
    context = real.context_BxT[:, None, None]
    total = jax.nn.logsumexp(jnp.where(context, logits, NEVER), -1, keepdims=True)
    return _shifted(w, (logits - total).max(2))


def _shifted(w: Layers, log_weight_BxKxT: jax.Array) -> jax.Array:
    return (log_weight_BxKxT * w["s"][None, :, None]).swapaxes(1, 2) + w["c"]


class Gists(NamedTuple):
    """Learned tokens behind the context, on their way through the layers."""

    x_BxJxD: jax.Array
    position_BxJ: jax.Array


def new_gists(embedding_JxD: jax.Array, base: Base, start_B: jax.Array) -> Gists:
    """Return the gist tokens of each context, at the positions from `start_B` on."""
    J, D = embedding_JxD.shape
    x = jnp.broadcast_to(embedding_JxD.astype(base.dtype), (len(start_B), J, D))
    return Gists(x, start_B[:, None] + jnp.arange(J)[None])


def read_as_gist(
    w: Layers, layer: Layers, gists: Gists, context: Part, base: Base
) -> tuple[jax.Array, Gists]:
    """Run the gist tokens through a layer -> scores `[B, K, T]` and the next layer's gists.

    A score is the strongest attention that any of them pays to the entry. The layer itself gets no
    gradient.
    """
    layer = jax.lax.stop_gradient(layer)
    angles = rope_angles(gists.position_BxJ, base.shape)
    own = project(layer, gists.x_BxJxD, angles, base.shape)
    all_of_them = jnp.ones((1, 1, 1, gists.x_BxJxD.shape[1]), bool)
    part = Part(own.key_BxTxKxH, own.value_BxTxKxH, all_of_them)
    read, weights = attend_and_weigh(own.query_BxTxKxGxH, context, part)
    scores = _shifted(w, jnp.log(jnp.max(weights, (2, 3)) + 1e-7)).swapaxes(1, 2)
    return scores, gists._replace(x_BxJxD=finish(layer, gists.x_BxJxD, read, base.shape))
