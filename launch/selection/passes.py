"""The passes over a batch: read the contexts, score their entries, answer their questions.

Masks stand for the cut: nothing is packed, so all ratios are read from one set of keys and values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.selection import scorers
from launch.selection.attention import Part, attend, attend_and_weigh, fused_causal
from launch.selection.batches import Batch
from launch.selection.budget import Asking, Cut, Reads, cut_by_score, reads
from launch.selection.model import (
    Base,
    Layers,
    Leaves,
    Projected,
    finish,
    project,
    rms_norm,
    rope_angles,
)
from launch.selection.options import Options

SMALLEST = 1e-7
"""Scores below it count as it, before their log is taken."""

stop = jax.lax.stop_gradient


class Entries(NamedTuple):
    """Keys (rotated) and values of every context, `[L, B, T, K, H]`."""

    keys: jax.Array
    values: jax.Array


class Frozen(NamedTuple):
    """What a step reads and does not change."""

    base: Base
    teacher: dict[str, Layers] | None  # adapter of the full-context model
    profile_LxKxR: jax.Array | None


def real_tokens(base: Base, batch: Batch) -> scorers.Real:
    """Mark the positions of prompt and context, and of the context alone."""
    position = jnp.arange(batch.context_BxT.shape[1])[None]
    token = position < _end(base, batch)[:, None]
    return scorers.Real(token, (position >= len(base.prompt.prefix)) & token)


def _end(base: Base, batch: Batch) -> jax.Array:
    """Return the first position after each context."""
    return len(base.prompt.prefix) + batch.length_B


def encode(
    base: Base, encoder: Layers, scorer: Leaves | None, batch: Batch, options: Options
) -> tuple[Entries, dict[str, jax.Array]]:
    """Read prompts and contexts once -> entries and learned scores `{name: [L, B, K, T]}`."""
    scorer = scorer or {}
    x = base.embedding_VxD[batch.context_BxT]
    real, T = real_tokens(base, batch), batch.context_BxT.shape[1]
    angles = rope_angles(jnp.broadcast_to(jnp.arange(T)[None], x.shape[:2]), base.shape)
    mask = _encoder_mask(base, real, options.bidirectional)
    gists = None
    if "gist" in scorer:
        gists = scorers.new_gists(scorer["gist"]["emb"], base, _end(base, batch))

    def layer(carry: Any, xs: Any) -> Any:
        x, gists = carry
        weights, scorer = xs
        seen = project(weights, x, angles, base.shape)
        query, key, value = seen.query_BxTxKxGxH, seen.key_BxTxKxH, seen.value_BxTxKxH
        if options.cudnn and not options.bidirectional:
            read = fused_causal(query, key, value)
        else:
            read = attend(query, Part(key, value, mask))
        y = finish(weights, x, read, base.shape)
        score, gists = _scores(scorer, weights, seen, gists, (base, real, options.open))
        return (y, gists), (Entries(key, value), score)

    # the gists' embeddings enter before the first layer; the other leaves are stacked by layer
    stacked = {n: {k: v for k, v in w.items() if k != "emb"} for n, w in scorer.items()}
    _, out = jax.lax.scan(layer, (x, gists), (encoder, stacked))
    return out


def _encoder_mask(base: Base, real: scorers.Real, bidirectional: bool) -> jax.Array:
    """Return `[B, 1, T, T]`; the prompt stays causal, so it is the same for any context."""
    position = jnp.arange(real.token_BxT.shape[1])
    mask = position[:, None] >= position[None]
    if bidirectional:
        in_context = position >= len(base.prompt.prefix)
        mask = mask | (in_context[:, None] & in_context[None])
    return (mask[None] & real.token_BxT[:, None])[:, None]


def _scores(
    scorer: Leaves,
    weights: Layers,
    seen: Projected,
    gists: scorers.Gists | None,
    setting: tuple[Base, scorers.Real, bool],
) -> tuple[dict[str, jax.Array], scorers.Gists | None]:
    """Return the learned scores of one layer. Their gradient ends here unless `open`."""
    base, real, open_to_encoder = setting
    seen = seen if open_to_encoder else stop(seen)
    scores = {}
    for name, w in scorer.items():
        if name == "gist" and gists is not None:
            context = Part(seen.key_BxTxKxH, seen.value_BxTxKxH, real.token_BxT[:, None, None])
            scores[name], gists = scorers.read_as_gist(w, weights, gists, context, base)
        else:
            scores[name] = scorers.score(name, w, seen, real)
    return scores, gists


def kvzip(base: Base, decoder: Layers, entries: Entries, batch: Batch) -> jax.Array:
    """Return KVzip's scores `[L, B, K, T]` (Kim et al. 2025, arXiv:2505.23416).

    An entry's score is the largest attention it gets from any query head of its group while the
    model repeats the context.
    """
    x = base.embedding_VxD[batch.repeat_BxS]
    position = jnp.arange(x.shape[1])
    token_BxT = real_tokens(base, batch).token_BxT
    real_BxS = position[None] < len(base.prompt.repeat) + batch.length_B[:, None]
    angles = rope_angles(_end(base, batch)[:, None] + position[None], base.shape)
    causal = ((position[:, None] >= position[None])[None] & real_BxS[:, None])[:, None]

    def layer(x: jax.Array, xs: tuple[Layers, Entries]) -> tuple[jax.Array, jax.Array]:
        weights, (keys, values) = xs
        own = project(weights, x, angles, base.shape)
        read, attention = attend_and_weigh(
            own.query_BxTxKxGxH,
            Part(keys, values, token_BxT[:, None, None]),
            Part(own.key_BxTxKxH, own.value_BxTxKxH, causal),
        )
        score = jnp.max(attention * real_BxS[:, None, None, :, None], (2, 3))
        return finish(weights, x, read, base.shape), score

    return jax.lax.scan(layer, x, (decoder, entries))[1]


class Compressed(NamedTuple):
    """A batch of contexts that can be asked at every ratio."""

    entries: Entries
    cut: Cut | None  # None: everything is kept
    learned: dict[str, jax.Array]  # scores of the learned scorers
    log_kvzip: jax.Array | None  # KVzip's, if they were computed


def compress(
    frozen: Frozen,
    leaves: Leaves,
    layers: tuple[Layers, Layers],
    batch: Batch,
    options: Options,
    scorer_chooses: jax.Array | None = None,
) -> Compressed:
    """Read the contexts and choose what is kept of them.

    Args:
        layers: encoder and decoder, with their adapters.
        scorer_chooses: in training, False while KVzip still chooses for the learned scorer. KVzip's
            scores are then computed too. None: the score that `options` name, alone.
    """
    base, (encoder, decoder) = frozen.base, layers
    entries, learned = encode(base, encoder, leaves.get("scorer"), batch, options)
    if options.full:
        return Compressed(entries, None, learned, None)
    log_kvzip = None
    if scorer_chooses is not None or not options.learned:
        score = kvzip(base, stop(decoder), stop(entries), batch)
        log_kvzip = jnp.log(jnp.maximum(score, SMALLEST))
    if options.learned:
        score = learned[options.score]
        if log_kvzip is not None:
            score = jnp.where(scorer_chooses, score, log_kvzip)
    profile = frozen.profile_LxKxR if options.spread == "profile" else None
    context_BxT = real_tokens(base, batch).context_BxT
    cut = cut_by_score(stop(score), context_BxT, batch.length_B, profile, options.slot_counts)
    # thresholds carry no gradient, scores do: the gate's
    return Compressed(entries, cut._replace(score_LxBxKxT=score), learned, log_kvzip)


def asking(base: Base, batch: Batch, ratio_BxM: jax.Array) -> Asking:
    """Return who reads at which ratio, for `reads_of`."""
    return Asking(ratio_BxM, *real_tokens(base, batch), batch.length_B)


def reads_of(cut: Cut | None, bias_K: jax.Array | None, asking: Asking, options: Options) -> Reads:
    """Return what tokens may read of a layer's entries: what is kept, or everything."""
    if cut is None:
        return Reads(asking.token_BxT[:, None, None])
    return reads(cut, bias_K, asking, options.temperature)


def read_tails(
    base: Base,
    decoder: Layers,
    bias_LxK: jax.Array | None,
    compressed: Compressed,
    batch: Batch,
    options: Options,
) -> tuple[jax.Array, Entries]:
    """Read all questions (and answers) of each context at once, each at its own ratio.

    Returns:
        Normed hidden states `[B, M, D]`, and the tail's own keys and values `[L, B, M, K, H]`.
    """
    x = base.embedding_VxD[batch.tail_BxM]
    B, M = batch.tail_BxM.shape
    end = _end(base, batch)[:, None]
    angles = rope_angles(end + batch.place_BxM, base.shape)
    who = asking(base, batch, batch.ratio_BxM)
    own_mask = _tail_mask(batch)

    def pieces(x_BxMxKxH: jax.Array) -> jax.Array:
        return x_BxMxKxH.reshape(B, batch.copies, M // batch.copies, *x_BxMxKxH.shape[2:])

    def layer(x: jax.Array, xs: Any) -> tuple[jax.Array, Entries]:
        weights, (keys, values), cut, bias_K = xs
        own = project(weights, x, angles, base.shape)
        read = attend(
            own.query_BxTxKxGxH,
            Part(keys, values, *reads_of(cut, bias_K, who, options)),
            Part(pieces(own.key_BxTxKxH), pieces(own.value_BxTxKxH), own_mask),
        )
        y = finish(weights, x, read, base.shape)
        return y, Entries(own.key_BxTxKxH, own.value_BxTxKxH)

    xs = (decoder, compressed.entries, compressed.cut, bias_LxK)
    x, own = jax.lax.scan(layer, x, xs)
    return rms_norm(x, base.norm_D, base.shape), own


def _tail_mask(batch: Batch) -> jax.Array:
    """Return `[B, 1, M, M // copies]`: tokens see those before them in the same question."""
    B, M = batch.question_BxM.shape
    t = M // batch.copies
    question = batch.question_BxM.reshape(B, batch.copies, t)
    causal = jnp.arange(t)[:, None] >= jnp.arange(t)[None]
    same = question[..., None] == question[:, :, None]
    return (same & causal).reshape(B, 1, M, t)
