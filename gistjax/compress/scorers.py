"""What an entry of the key/value cache is worth to those who ask later: methods without training.

Each scores the entries of one layer from what its attention reads: in the pass that reads the
context behind the prompt, or in a second one, in which the decoder reads tokens behind both. A
method is applied to all that was read, the prompt too, as its authors apply it; of its scores those
of the context are returned. "Sinks" are the first tokens of all: a prompt of four tokens or more
before the context, which is never dropped, holds them.

The names behind the papers are those of kvpress (https://github.com/NVIDIA/kvpress, 0.5.5), and so
are the constants unless a method says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.compress.windows import masked_softmax
from gistjax.model.config import LlamaConfig
from gistjax.model.layer import Seen, take_positions
from gistjax.model.masks import lengths_to_valid
from gistjax.model.rope import apply_rope, rope_angles

CHUNK = 128
"""Queries whose probabilities are in memory at a time."""
SINKS = 4
WINDOW, WINDOW_PART = 64, 16  # SnapKV's, and the part of a short context that it is at most
POOL = 5  # neighbours over which SnapKV averages
FUTURE = 512  # positions behind the context at which expected attention expects queries
ALWAYS = 1e6
"""Beyond every score: of what a method keeps first."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """What a scorer knows of a pass: P tokens of the prompt, then C of the context."""

    config: LlamaConfig = field(metadata={"static": True})
    prefix: int = field(metadata={"static": True})  # P, the same in every row
    ids_BxC: Array
    length_B: Array  # context tokens; padding follows them
    seed: int = field(metadata={"static": True})
    asked_B: Array | None = None  # tokens that the decoder reads in a second pass

    @property
    def size(self) -> int:
        """C."""
        return self.ids_BxC.shape[1]

    @property
    def end_B(self) -> Array:
        """Tokens of prompt and context together."""
        return self.prefix + self.length_B

    def of_context(self, x_BxKxU: Array) -> Array:
        """The context's part `[B, K, C]` of what was found for every position."""
        return jax.lax.slice_in_dim(x_BxKxU, self.prefix, self.prefix + self.size, axis=2)


@dataclass(frozen=True)
class Scorer:
    """A method, and what it watches."""

    score: Callable[[Reading, Any, Seen], Array]
    """Function of the reading, the layer's number (int32) or a learned scorer's weights for it,
    and what is seen there, that returns fp32 `[B, K, C]`: the larger, the sooner it is kept.
    Padding has any finite value."""
    second: Literal["", "repetition", "question", "gists"] = ""  # what is read in a second pass


def kvzip(reading: Reading, layer: Array, seen: Seen) -> Array:
    """The most that any query pays an entry while the context is repeated.

    KVzip, Kim et al. 2025 (arXiv:2505.23416): `KVzipPress`. The decoder is asked to repeat the
    context and is given the repetition. The maximum is over its tokens, those that ask for it
    included, and over the query heads of a KV head. The probabilities are the model's own. The
    paper's leave out what stands before the context but for sinks (kvpress: four), and it repeats
    contexts of more than 2,048 tokens in pieces, each with probabilities of its own.
    """
    assert reading.asked_B is not None
    real_BxT = lengths_to_valid(reading.asked_B, seen.h_BxTxD.shape[1])
    return reading.of_context(attended(seen, real_BxT, "max"))


def question_aware(reading: Reading, layer: Array, seen: Seen) -> Array:
    """What the question pays an entry, on average, and its neighbours.

    SnapKV as it was published, Li et al. 2024 (arXiv:2404.14469): `SnapKVPress` with a window that
    is the question. It knows what will be asked, so it is an upper row of a table and no peer.
    """
    assert reading.asked_B is not None
    real_BxT = lengths_to_valid(reading.asked_B, seen.h_BxTxD.shape[1])
    mean_BxKxU = attended(seen, real_BxT, "mean")
    return reading.of_context(_pooled(mean_BxKxU, reading.end_B))


def snapkv(reading: Reading, layer: Array, seen: Seen) -> Array:
    """What the context's last tokens pay an entry, on average, and its neighbours.

    SnapKV, Li et al. 2024 (arXiv:2404.14469), without the question: `SnapKVPress`. The last tokens
    themselves are kept first, the very last before the others. They are 64, in a context of less
    than 1,024 tokens a sixteenth: else they would be all that is kept.
    """
    T = seen.h_BxTxD.shape[1]
    window_B = jnp.clip(reading.length_B // WINDOW_PART, 1, WINDOW)
    place_BxW = reading.end_B[:, None] - 1 - jnp.arange(min(WINDOW, T))
    mean_BxKxU = attended(
        seen, lengths_to_valid(window_B, place_BxW.shape[1]), "mean", jnp.maximum(place_BxW, 0)
    )
    first_B = reading.length_B - window_B
    score_BxKxC = reading.of_context(_pooled(mean_BxKxU, reading.prefix + first_B))
    place_C = jnp.arange(reading.size)
    in_window_BxC = place_C >= first_B[:, None]
    return jnp.where(in_window_BxC[:, None], ALWAYS + place_C, score_BxKxC)


def h2o(reading: Reading, layer: Array, seen: Seen) -> Array:
    """What an entry is paid on average by the tokens that see it, its own included.

    After H2O, Zhang et al. 2023 (arXiv:2306.14048): `ObservedAttentionPress`. The paper has sums,
    which favour early tokens, evicts while it generates, and keeps the last tokens besides.
    """
    real_BxT = lengths_to_valid(reading.end_B, seen.h_BxTxD.shape[1])
    return reading.of_context(attended(seen, real_BxT, "mean of those who see"))


def expected_attention(reading: Reading, layer: Array, seen: Seen) -> Array:
    """What queries at the next 512 positions would pay an entry, times its value's norm.

    Expected attention, Devoto et al. 2025 (arXiv:2510.00636): `ExpectedAttentionPress`, with
    covariance and without its ε. Queries are taken to be normally distributed, with the mean and
    covariance of those that were read, sinks apart, turned by the mean of the future positions'
    rotations. The softmax runs over all entries but the sinks, which are kept first.
    """
    k_BxUxKxH, v_BxUxKxH = (x.astype(jnp.float32) for x in (seen.k_BxTxKxH, seen.v_BxTxKxH))
    T, H = k_BxUxKxH.shape[1], k_BxUxKxH.shape[3]
    real_BxT = lengths_to_valid(reading.end_B, T) & (jnp.arange(T) >= SINKS)
    mean_BxKxGxH, cov_BxKxGxHxH = _normal(seen.unrotated_q_BxTxKxGxH, real_BxT)
    future_BxF = reading.end_B[:, None] + jnp.arange(FUTURE)
    turns = [jnp.mean(x, axis=1, keepdims=True) for x in rope_angles(reading.config, future_BxF)]
    if reading.config.unrotated_layers:
        rotates = jnp.asarray(reading.config.rotates)[layer]
        turns = [jnp.where(rotates, x, one) for x, one in zip(turns, (1.0, 0.0), strict=True)]
    cos, sin = (x[:, :, :, None] for x in turns)
    mean_BxKxGxH = apply_rope(mean_BxKxGxH, (cos[:, 0], sin[:, 0]))
    for _ in range(2):  # rows, then columns
        cov_BxKxGxHxH = jnp.swapaxes(apply_rope(cov_BxKxGxHxH, (cos, sin)), -1, -2)
    exact = jax.lax.Precision.HIGHEST
    turned_BxKxGxUxH = jnp.einsum("bkgij,bukj->bkgui", cov_BxKxGxHxH, k_BxUxKxH, precision=exact)
    logits_BxKxGxU = jnp.einsum("bkgh,bukh->bkgu", mean_BxKxGxH, k_BxUxKxH, precision=exact)
    logits_BxKxGxU = logits_BxKxGxU * H**-0.5
    logits_BxKxGxU += jnp.einsum(
        "bkgui,buki->bkgu", turned_BxKxGxUxH, k_BxUxKxH, precision=exact
    ) / (2 * H)
    share_BxKxU = jnp.mean(masked_softmax(logits_BxKxGxU, real_BxT[:, None, None]), axis=2)
    norm_BxKxU = jnp.swapaxes(jnp.linalg.norm(v_BxUxKxH, axis=-1), 1, 2)
    is_sink_U = jnp.arange(T) < SINKS
    return reading.of_context(jnp.where(is_sink_U, ALWAYS, share_BxKxU * norm_BxKxU))


def keydiff(reading: Reading, layer: Array, seen: Seen) -> Array:
    """How little an entry's key resembles the mean of all keys' directions.

    KeyDiff, Park et al. 2025 (arXiv:2504.15364): `KeyDiffPress`. The paper drops entries block by
    block while it reads. Here, as in kvpress, all are compared once.
    """
    k_BxTxKxH = seen.k_BxTxKxH.astype(jnp.float32)
    direction_BxTxKxH = k_BxTxKxH / jnp.maximum(_norm(k_BxTxKxH), 1e-12)
    real_BxT = lengths_to_valid(reading.end_B, k_BxTxKxH.shape[1])
    sum_BxKxH = jnp.sum(direction_BxTxKxH, axis=1, where=real_BxT[:, :, None, None])
    anchor_BxKxH = sum_BxKxH / jnp.maximum(_norm(sum_BxKxH), 1e-12)
    likeness_BxKxT = jnp.einsum(
        "btkh,bkh->bkt", direction_BxTxKxH, anchor_BxKxH, precision=jax.lax.Precision.HIGHEST
    )
    return reading.of_context(-likeness_BxKxT)


def knorm(reading: Reading, layer: Array, seen: Seen) -> Array:
    """How short an entry's key is.

    Devoto et al. 2024 (arXiv:2406.11430): `KnormPress`. The paper keeps the first two layers whole.
    """
    norm_BxTxK = _norm(seen.k_BxTxKxH.astype(jnp.float32))[..., 0]
    return reading.of_context(-jnp.swapaxes(norm_BxTxK, 1, 2))


def streaming(reading: Reading, layer: Array, seen: Seen) -> Array:
    """Sinks first, then the later the better.

    StreamingLLM, Xiao et al. 2023 (arXiv:2309.17453): `StreamingLLMPress`. Neither the paper's new
    positions for what is kept nor its window that moves on: kvpress has them in
    `KeyRerotationPress`.
    """
    B, T, K, _ = seen.k_BxTxKxH.shape
    place_T = jnp.arange(T)
    score_T = jnp.where(place_T < SINKS, ALWAYS, place_T.astype(jnp.float32))
    return reading.of_context(jnp.broadcast_to(score_T, (B, K, T)))


def random(reading: Reading, layer: Array, seen: Seen) -> Array:
    """A draw for each entry, uniform in [0, 1): `RandomPress`.

    It depends on the seed, on the context's tokens, and on layer, KV head and position; neither on
    padding nor on the row's place in the batch.
    """
    place_C = jnp.arange(reading.size)
    seed = jax.random.key(reading.seed)

    def number(place: Array, token: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(seed, place), token))

    def row(ids_C: Array, length: Array) -> Array:
        numbers_C = jax.vmap(number)(place_C, ids_C)
        content = jnp.sum(numbers_C, where=place_C < length, dtype=jnp.uint32)
        key = jax.random.fold_in(jax.random.fold_in(seed, content), layer)
        keys_C = jax.vmap(jax.random.fold_in, (None, 0))(key, place_C)
        return jax.vmap(lambda key: jax.random.uniform(key, (K,)), out_axes=1)(keys_C)

    K = seen.k_BxTxKxH.shape[2]
    return jax.vmap(row)(reading.ids_BxC, reading.length_B)


SCORERS: dict[str, Scorer] = {
    "kvzip": Scorer(kvzip, "repetition"),
    "expected_attention": Scorer(expected_attention),
    "h2o": Scorer(h2o),
    "snapkv": Scorer(snapkv),
    "keydiff": Scorer(keydiff),
    "knorm": Scorer(knorm),
    "streaming": Scorer(streaming),
    "random": Scorer(random),
    "question_aware": Scorer(question_aware, "question"),
}
"""By name; `gistjax.config.SCORERS` lists them."""


def attended(
    seen: Seen,
    real_BxW: Array,
    how: Literal["max", "mean", "mean of those who see"],
    place_BxW: Array | None = None,
) -> Array:
    """Attention that each position receives: the model's own probabilities, fp32 `[B, K, U]`.

    They are made for `CHUNK` queries at a time. As in `gistjax.model.attention`, queries with a
    mask look into the cache, those without at each other.

    Args:
        real_BxW: which queries count.
        how: over queries and the G query heads of a KV head.
        place_BxW: which of the T positions they are; by default all.
    """
    q_BxTxKxGxH, mask_BxTxU = seen.q_BxTxKxGxH, seen.mask_BxTxU
    B, T, K, G, H = q_BxTxKxGxH.shape
    if mask_BxTxU is None or seen.cache is None:
        k_BxKxUxH = jnp.swapaxes(seen.k_BxTxKxH, 1, 2)
    else:
        k_BxKxUxH = seen.cache.k
    U = k_BxKxUxH.shape[2]
    if place_BxW is None:
        place_BxW = jnp.broadcast_to(jnp.arange(T), (B, T))
    W = place_BxW.shape[1]
    size = min(CHUNK, W)

    def body(found: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple[Any, None]:
        (sofar_BxKxU, count_BxU), (place, real) = found, chunk
        q = take_positions(q_BxTxKxGxH, place)
        logits = jnp.einsum("bwkgh,bkuh->bkgwu", q, k_BxKxUxH, preferred_element_type=jnp.float32)
        if mask_BxTxU is None:
            sees_BxWxU = jnp.arange(U) <= place[:, :, None]
        else:
            sees_BxWxU = take_positions(mask_BxTxU, place)
        sees_BxWxU &= real[:, :, None]
        share = masked_softmax(logits * H**-0.5, sees_BxWxU[:, None, None])
        if how == "max":
            sofar_BxKxU = jnp.maximum(sofar_BxKxU, jnp.max(share, axis=(2, 3)))
        else:
            sofar_BxKxU += jnp.sum(share, axis=(2, 3))
        return (sofar_BxKxU, count_BxU + jnp.sum(sees_BxWxU, axis=1)), None

    def chunks(x_BxW: Array) -> Array:
        return jnp.pad(x_BxW, ((0, 0), (0, -W % size))).reshape(B, -1, size).swapaxes(0, 1)

    start = jnp.zeros((B, K, U), jnp.float32), jnp.zeros((B, U), jnp.int32)
    parts = chunks(place_BxW), chunks(real_BxW)
    (found_BxKxU, count_BxU), _ = jax.lax.scan(body, start, parts)
    if how == "max":
        return found_BxKxU
    if how == "mean":
        count_BxU = jnp.sum(real_BxW, axis=1, keepdims=True)
    return found_BxKxU / (G * jnp.maximum(count_BxU, 1))[:, None]


def _pooled(x_BxKxU: Array, end_B: Array) -> Array:
    """Mean of each position and two neighbours on both sides; zeros stand from `end` on."""
    U = x_BxKxU.shape[2]
    x_BxKxU = jnp.where(lengths_to_valid(end_B, U)[:, None], x_BxKxU, 0.0)
    padded = jnp.pad(x_BxKxU, ((0, 0), (0, 0), (POOL // 2, POOL // 2)))
    shifted = [jax.lax.slice_in_dim(padded, i, i + U, axis=2) for i in range(POOL)]
    total: Array = sum(shifted[1:], shifted[0])
    return total / POOL


def _normal(q_BxTxKxGxH: Array, real_BxT: Array) -> tuple[Array, Array]:
    """Mean `[B, K, G, H]` and covariance `[B, K, G, H, H]` of some queries, in fp32."""
    exact = jax.lax.Precision.HIGHEST
    weight_BxT = real_BxT / jnp.maximum(jnp.sum(real_BxT, axis=1, keepdims=True), 1)
    q_BxTxKxGxH = q_BxTxKxGxH.astype(jnp.float32)
    mean_BxKxGxH = jnp.einsum("bt,btkgh->bkgh", weight_BxT, q_BxTxKxGxH, precision=exact)
    centred = q_BxTxKxGxH - mean_BxKxGxH[:, None]
    weighted = centred * weight_BxT[:, :, None, None, None]
    return mean_BxKxGxH, jnp.einsum("btkgi,btkgj->bkgij", weighted, centred, precision=exact)


def _norm(x: Array) -> Array:
    """Euclidean norm over the last axis, which stays."""
    norm: Array = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return norm
