"""Greedy answers from what is kept, their scores, the parts KV heads keep, and times."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gistjax.evaluation.metrics import squad
from launch.selection.attention import Part, attend
from launch.selection.batches import (
    Asked,
    Batch,
    Split,
    group_questions,
    question_batch,
    training_batch,
)
from launch.selection.model import (
    Leaves,
    encoder_and_decoder,
    finish,
    project,
    rms_norm,
    rope_angles,
)
from launch.selection.options import RATIOS, Options
from launch.selection.passes import (
    Entries,
    Frozen,
    asking,
    compress,
    read_tails,
    reads_of,
)
from launch.selection.train import compile_for

PROFILED = 512
"""Contexts whose parts are averaged into a profile."""

TIMED, REPEATS = 32, 20

log = logging.getLogger(__name__)


def for_scoring(leaves: Leaves, score: str) -> Leaves:
    """Return the leaves without the scorers that do not choose."""
    scorer = {name: w for name, w in leaves.get("scorer", {}).items() if name == score}
    return {**leaves, "scorer": scorer}


def answer(
    leaves: Leaves, frozen: Frozen, batch: Batch, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Answer every question at its ratio, greedily.

    Returns:
        Tokens `[B, Q, new_tokens]`; entries kept `[L, K, R]` and context tokens, summed over the
        contexts that are asked about.
    """
    base, asked = frozen.base, batch.questions
    assert asked is not None
    leaves = for_scoring(leaves, options.score)
    layers = encoder_and_decoder(base, leaves)
    compressed = compress(frozen, leaves, layers, batch, options)
    bias_LxK = leaves.get("bias")
    hidden, tail = read_tails(base, layers[1], bias_LxK, compressed, batch, options)
    hidden = jnp.take_along_axis(hidden, asked.last[..., None], 1)
    B, Q = asked.last.shape
    L, K, H = base.shape.n_layers, base.shape.n_kv_heads, base.shape.head_dim
    empty = jnp.zeros((L, B, options.new_tokens * Q, K, H), base.dtype)
    who = asking(base, batch, asked.ratio)
    fixed = (layers[1], compressed.entries, tail, compressed.cut, bias_LxK)

    def one(carry: Any, t: jax.Array) -> Any:
        hidden, written, done = carry
        logits = jnp.einsum(
            "bqd,vd->bqv", hidden, base.embedding_VxD, preferred_element_type=jnp.float32
        )
        token = jnp.where(done, base.prompt.end, jnp.argmax(logits, -1))
        done = done | (token == base.prompt.end)
        x, written = _read_token(frozen, batch, (token, t), (fixed, written), (who, options))
        return (rms_norm(x, base.norm_D, base.shape), written, done), token

    start = (hidden, Entries(empty, empty), jnp.zeros((B, Q), bool))
    _, tokens = jax.lax.scan(one, start, jnp.arange(options.new_tokens))
    real_B = (asked.number >= 0).any(1)
    kept = jnp.zeros((L, K, len(RATIOS)))
    if compressed.cut is not None:
        kept = jnp.where(real_B[None, :, None, None], compressed.cut.kept_LxBxKxR, 0).sum(1)
    return tokens.transpose(1, 2, 0), kept, jnp.sum(jnp.where(real_B, batch.length_B, 0))


def _read_token(
    frozen: Frozen, batch: Batch, new: tuple[jax.Array, jax.Array], cache: Any, how: Any
) -> tuple[jax.Array, Entries]:
    """Read one more token of every answer -> `[B, Q, D]`, and the answers' keys and values.

    Args:
        new: tokens `[B, Q]` and how many came before them.
        cache: what is fixed while answers grow, by layer; and the answers' entries so far.
        how: who reads what, and the options.
    """
    (token, t), (fixed, written), (who, options) = new, cache, how
    base, asked = frozen.base, batch.questions
    assert asked is not None
    Q = token.shape[1]
    position = len(base.prompt.prefix) + batch.length_B[:, None] + asked.length + t
    angles = rope_angles(position, base.shape)
    own_tail = (asked.number[:, :, None] == batch.question_BxM[:, None])[:, None]
    # answers stand interleaved, a token of each after the other
    whose = jnp.tile(asked.number, (1, options.new_tokens))
    there = jnp.arange(options.new_tokens * Q) // Q <= t
    own_answer = ((asked.number[:, :, None] == whose[:, None]) & there[None, None])[:, None]

    def layer(x: jax.Array, xs: Any) -> tuple[jax.Array, Entries]:
        (weights, entries, tail, cut, bias_K), answers = xs
        own = project(weights, x, angles, base.shape)
        added = own.key_BxTxKxH, own.value_BxTxKxH
        answers = Entries(
            *(
                jax.lax.dynamic_update_slice(old, new, (0, t * Q, 0, 0))
                for old, new in zip(answers, added, strict=True)
            )
        )
        read = attend(
            own.query_BxTxKxGxH,
            Part(*entries, *reads_of(cut, bias_K, who, options)),
            Part(*tail, own_tail),
            Part(*answers, own_answer),
        )
        return finish(weights, x, read, base.shape), answers

    return jax.lax.scan(layer, base.embedding_VxD[token], (fixed, written))


class Texts:
    """Bytes of the vocabulary and gold answers, to turn tokens into scores."""

    def __init__(self, data: Path):
        self.vocabulary: list[str] = json.loads((data / "vocab.json").read_text())
        self.golds: dict[str, list[str]] = json.loads((data / "golds.json").read_text())

    def text(self, tokens: list[int], end: int) -> str:
        """Return the text before the end token."""
        if end in tokens:
            tokens = tokens[: tokens.index(end)]
        written = bytes("".join(self.vocabulary[t] for t in tokens), "latin-1")
        return written.decode("utf-8", "replace").strip()


def evaluate(leaves: Leaves, frozen: Frozen, which: str, options: Options) -> dict[str, Any]:
    """Score the answers to questions, and write them to a file.

    Args:
        which: split:N, as in --evaluate.

    Returns:
        F1, exact match and number of questions by ratio or slots; the part that each KV head keeps.
    """
    name, _, n = which.partition(":")
    split, rows = Split(Path(options.data), name, int(n)), options.eval_batch
    groups = group_questions(split, options.buckets, None)
    work: list[tuple[int, Batch, list[Asked]]] = []
    for bucket, some in groups.items():
        for i in range(0, len(some), rows):
            batch = question_batch(split, some[i : i + rows], rows, bucket, options)
            work.append((bucket, *batch))
    examples = {bucket: batch for bucket, batch, _ in reversed(work)}
    programs = compile_for(
        jax.jit(partial(answer, options=options)),
        lambda bucket: (leaves, frozen, examples[bucket]),
        sorted(groups),
    )
    start = time.time()
    outputs = [programs[bucket](leaves, frozen, batch) for bucket, batch, _ in work]
    predictions: dict[str, dict[str, str]] = defaultdict(dict)
    kept, tokens, texts = np.zeros(()), 0, Texts(Path(options.data))
    for (_, _, asked), (answers, kept_LxKxR, n_tokens) in zip(work, outputs, strict=True):
        ids = np.asarray(answers)
        kept, tokens = kept + np.asarray(kept_LxKxR, np.float64), tokens + int(n_tokens)
        for row, place, question, ratio in asked:
            text = texts.text(ids[row, place].tolist(), split.prompt.end)
            predictions[options.budget_names[ratio]][split.ids[question]] = text
    seconds = time.time() - start
    file = f"{options.name}.{which.replace(':', '')}.{options.score}-{options.spread}.json"
    (Path(options.out) / file).write_text(json.dumps(predictions))
    table = {budget: _scores(some, texts) for budget, some in predictions.items()}
    log.info("%s %s@%s: %s", which, options.score, options.spread, table)
    return {"table": table, "seconds": seconds, "share": np.round(kept / tokens, 4).tolist()}


def _scores(predictions: dict[str, str], texts: Texts) -> tuple[float, float, int]:
    """Return mean F1, mean exact match and the number of questions."""
    scores = [squad(text, texts.golds[i]) for i, text in predictions.items()]
    f1, em = (round(float(np.mean(column)), 4) for column in zip(*scores, strict=True))
    return f1, em, len(scores)


def calibrate(leaves: Leaves, frozen: Frozen, options: Options) -> np.ndarray:
    """Return the mean part of each KV head `[L, K, R]` under one budget over all, and write it.

    It is measured on training contexts. No KV head keeps more at a higher ratio.
    """
    options = replace(options, spread="global", full=False)
    split = Split(Path(options.data), "train")
    groups = group_questions(split, options.buckets, np.random.default_rng(5))

    @jax.jit
    def kept(leaves: Leaves, frozen: Frozen, batch: Batch) -> tuple[jax.Array, jax.Array]:
        layers = encoder_and_decoder(frozen.base, leaves)
        cut = compress(frozen, leaves, layers, batch, options).cut
        assert cut is not None
        return cut.kept_LxBxKxR.sum(1), batch.length_B.sum()

    total, tokens, rows = np.zeros(()), 0, options.batch
    n_groups = sum(map(len, groups.values()))
    for bucket, some in groups.items():
        n = max(1, round(PROFILED * len(some) / n_groups / rows)) * rows
        for i in range(0, min(len(some), n), rows):
            rng = np.random.default_rng(1)
            batch = training_batch(split, some[i : i + rows], rows, bucket, options, rng)
            kept_LxKxR, n_tokens = kept(leaves, frozen, batch)
            total, tokens = total + np.asarray(kept_LxKxR, np.float64), tokens + int(n_tokens)
    profile = total / tokens
    profile[..., 0] = 1
    profile = np.minimum.accumulate(profile, -1).astype(np.float32)
    np.savez(options.profile, profile=profile)
    log.info("profile of %d tokens: mean parts %s", tokens, profile.mean((0, 1)).round(4).tolist())
    return profile


def time_to_compress(leaves: Leaves, frozen: Frozen, options: Options) -> dict[str, float]:
    """Return milliseconds to compress 32 held-out contexts of up to 193 tokens, in three ways.

    They are the pass alone, and with thresholds for all ratios: the learned scorer, and KVzip.
    """
    split = Split(Path(options.data), "held")
    bucket = min(1, len(options.buckets) - 1)
    groups = group_questions(split, options.buckets, None)[bucket][:TIMED]
    batch, _ = question_batch(split, groups, TIMED, bucket, replace(options, ratios="8"))
    layers = jax.jit(encoder_and_decoder)(frozen.base, leaves)
    ways = {
        "prefill": replace(options, score="kvzip", full=True),
        "learned": replace(options, full=False),
        "kvzip": replace(options, score="kvzip", full=False),
    }
    found = {}
    for name, way in ways.items():
        program = _compressing(replace(way, spread="global"))
        args = (for_scoring(leaves, way.score), frozen, layers, batch)
        jax.block_until_ready(program(*args))
        times = []
        for _ in range(REPEATS):
            start = time.time()
            jax.block_until_ready(program(*args))
            times.append(time.time() - start)
        found[name] = float(np.median(times)) * 1e3
    log.info("milliseconds to compress %d contexts: %s", TIMED, found)
    return found


def _compressing(options: Options) -> Any:
    @jax.jit
    def program(leaves: Leaves, frozen: Frozen, layers: Any, batch: Batch) -> Any:
        return compress(frozen, leaves, layers, batch, options)[:2]

    return program
