"""Scorers that are trained: what an entry is worth, told by one pass over the context.

Each is one of the architectures that make slots, put to another use. It reads what a layer sees of
the context and gives the logarithm of a score, of each entry of each KV head of that layer. Two
teachers train it (`taught.learn`); the gradient of neither goes through it into what it reads.

`H` channels below are the scorer's own, J its queries or tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.compress.layers import parameter
from gistjax.compress.scorers import SCORERS, Reading, Scorer, attended
from gistjax.config import CompressionConfig
from gistjax.model.config import LlamaConfig
from gistjax.model.layer import Seen
from gistjax.model.masks import lengths_to_valid

CHANNELS = 64
WINDOW = 9
"""Positions that the convolution reads: four on either side."""
QUERIES = 16
"""Queries of a KV head (`cross_attention`), or gist tokens."""
TYPICAL = -5.0
"""About the mean logarithm of KVzip's scores, where scores begin."""
LEAST = 1e-7
"""Attention below it counts as it, before the logarithm is taken."""

Weights = dict[str, Array]
"""A scorer's own parameters of one layer, by name, in fp32."""


def conv(reading: Reading, weights: Weights, seen: Seen) -> Array:
    """Score by a depthwise convolution over the projected input of the layer."""
    h_BxTxD = jax.lax.stop_gradient(seen.h_BxTxD)
    T = h_BxTxD.shape[1]
    real_BxT = lengths_to_valid(reading.end_B, T)
    h_BxTxH = h_BxTxD @ weights["project"].astype(h_BxTxD.dtype)
    h_BxTxH = jnp.where(real_BxT[..., None], h_BxTxH, 0)
    h_BxTxH = _pooled(reading, weights, h_BxTxH)
    padded = jnp.pad(h_BxTxH, ((0, 0), (WINDOW // 2, WINDOW // 2), (0, 0)))
    filters_WxH = weights["filters"].astype(h_BxTxD.dtype)
    shifted = [padded[:, i : i + T] * filters_WxH[i] for i in range(WINDOW)]
    return _read_out(reading, weights, sum(shifted[1:], shifted[0]))


def pooling(reading: Reading, weights: Weights, seen: Seen) -> Array:
    """Score by an MLP over each position's input of the layer: the gate of a weighted pooling."""
    h_BxTxD = jax.lax.stop_gradient(seen.h_BxTxD)
    h_BxTxH = h_BxTxD @ weights["project"].astype(h_BxTxD.dtype)
    return _read_out(reading, weights, _pooled(reading, weights, h_BxTxH))


def cross_attention(reading: Reading, weights: Weights, seen: Seen) -> Array:
    """Score by the most that trained queries of each KV head pay an entry, before rotation."""
    k_BxTxKxH = jax.lax.stop_gradient(seen.unrotated_k_BxTxKxH)
    k_BxCxKxH = jax.lax.slice_in_dim(
        k_BxTxKxH, reading.prefix, reading.prefix + reading.size, axis=1
    )
    q_JxKxH = weights["queries"].astype(k_BxCxKxH.dtype)
    logits = jnp.einsum("jkh,bckh->bkjc", q_JxKxH, k_BxCxKxH, preferred_element_type=jnp.float32)
    real_BxC = lengths_to_valid(reading.length_B, reading.size)
    masked = jnp.where(real_BxC[:, None, None], logits, -1e30)
    share_BxKxJxC = logits - jax.nn.logsumexp(masked, axis=-1, keepdims=True)
    return _shifted(weights, jnp.max(share_BxKxJxC, axis=2))


def gist(reading: Reading, weights: Weights, seen: Seen) -> Array:
    """Score by the most that gist tokens behind the context pay an entry, over all their queries.

    What KVzip does with the repeated context, with 16 trained tokens in its place.
    """
    assert reading.asked_B is not None
    real_BxT = lengths_to_valid(reading.asked_B, seen.h_BxTxD.shape[1])
    most_BxKxC = reading.of_context(attended(seen, real_BxT, "max"))
    return _shifted(weights, jnp.log(jnp.maximum(most_BxKxC, LEAST)))


LEARNED: dict[str, Scorer] = {
    "conv": Scorer(conv),
    "pooling": Scorer(pooling),
    "cross_attention": Scorer(cross_attention),
    "gist": Scorer(gist, "gists"),
}
"""By name; `gistjax.config.LEARNED` lists them."""


def find_scorer(name: str) -> Scorer:
    """Return a scorer, trained or not, by its name."""
    return (SCORERS | LEARNED)[name]


def repeats(config: CompressionConfig, trains: bool = False) -> bool:
    """Return whether contexts are read a second time, repeated, to score their entries.

    Args:
        trains: in training, where KVzip may teach a learned scorer.
    """
    if trains and kvzip_teaches(config):
        return True
    return config.selects and find_scorer(config.select.scorer).second == "repetition"


def kvzip_teaches(config: CompressionConfig) -> bool:
    """Return whether a scorer in training learns KVzip's scores, or KVzip first chooses for it."""
    asked = config.select.warmup or config.loss_weights.get("kvzip")
    return config.learns_scores and bool(asked)


def new_weights(scorer: str, base: LlamaConfig, key: Array) -> nnx.Dict[nnx.Param[Array]]:
    """Return a scorer's parameters, stacked along L."""
    L, D, K, H = base.n_layers, base.d_model, base.n_kv_heads, base.head_dim
    keys = jax.random.split(key, 3)

    def normal(i: int, *shape: int, std: float) -> Array:
        return std * jax.random.normal(keys[i], shape, jnp.float32)

    scale, shift = jnp.ones((L, K)), jnp.zeros((L, K))
    if scorer == "gist":
        vectors = {"scale": scale, "shift": shift}
    elif scorer == "cross_attention":
        queries = normal(0, L, QUERIES, K, H, std=0.1)
        vectors = {"queries": queries, "scale": scale, "shift": shift}
    else:
        vectors = {"shift": shift + TYPICAL}
    weights = {name: parameter(value, decay=False) for name, value in vectors.items()}
    if scorer in ("conv", "pooling"):
        weights["project"] = parameter(normal(0, L, D, CHANNELS, std=D**-0.5))
        weights["out"] = parameter(normal(1, L, CHANNELS, K, std=0.01))
    if scorer == "conv":
        filters = normal(2, L, WINDOW, CHANNELS, std=0.1).at[:, WINDOW // 2].add(1.0)
        weights["filters"] = parameter(filters, decay=False)
    return nnx.Dict(weights)


def new_gists(base: LlamaConfig, key: Array) -> nnx.Param[Array]:
    """Return gist tokens `[J, D]`, in place of embeddings."""
    return parameter(0.02 * jax.random.normal(key, (QUERIES, base.d_model), jnp.float32))


def _read_out(reading: Reading, weights: Weights, h_BxTxH: Array) -> Array:
    """Channels to scores `[B, K, C]`."""
    score_BxTxK = jax.nn.silu(h_BxTxH).astype(jnp.float32) @ weights["out"] + weights["shift"]
    if "level" in weights:  # each token has the score of the group that it was pooled in
        score_BxTxK = jnp.take(score_BxTxK, _groups(reading, weights, h_BxTxH.shape[1]), axis=1)
    return reading.of_context(jnp.swapaxes(score_BxTxK, 1, 2))


def _groups(reading: Reading, weights: Weights, T: int) -> Array:
    """The group `[T]` that each position is pooled in; none holds both prompt and context."""
    return ((jnp.arange(T) - reading.prefix) >> weights["level"]) + reading.prefix


def _pooled(reading: Reading, weights: Weights, h_BxTxH: Array) -> Array:
    """Means over groups of real positions, by group, zeros behind them; as it was without."""
    if "level" not in weights:
        return h_BxTxH
    T = h_BxTxH.shape[1]
    group_T = _groups(reading, weights, T)
    real_BxTx1 = lengths_to_valid(reading.end_B, T)[..., None]
    h_BxTxH = jnp.where(real_BxTx1, h_BxTxH, 0)
    total = jnp.zeros_like(h_BxTxH).at[:, group_T].add(h_BxTxH)
    number = (
        jnp.zeros(real_BxTx1.shape, h_BxTxH.dtype)
        .at[:, group_T]
        .add(real_BxTx1.astype(h_BxTxH.dtype))
    )
    return total / jnp.maximum(number, 1)


def _shifted(weights: Weights, log_BxKxC: Array) -> Array:
    return log_BxKxC * weights["scale"][:, None] + weights["shift"][:, None]
