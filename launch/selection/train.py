"""The training step and its loop."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gistjax.data.batching import total_steps
from launch.selection.batches import Batch, Group, Split, group_questions, training_batch
from launch.selection.model import Leaves, encoder_and_decoder, merge
from launch.selection.options import RATIOS, Options
from launch.selection.passes import (
    Compressed,
    Frozen,
    compress,
    encode,
    read_tails,
    real_tokens,
)

BIAS_RATE = 20.0
"""Learning rate of the biases, times --lr."""

WARM_UP, LAST_RATE = 0.05, 0.02
CLIP = 1.0
FLOOR = -12.0
"""Least log of KVzip's score that a scorer is taught."""

LOGGED = (2, 10, 40)
EVERY = 200

log = logging.getLogger(__name__)


class State(NamedTuple):
    """What a step changes."""

    leaves: Leaves
    moments: optax.OptState


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def new_state(leaves: Leaves) -> State:
    return State(leaves, _adam().init(leaves))


def loss(
    leaves: Leaves,
    frozen: Frozen,
    batch: Batch,
    scorer_chooses: jax.Array,
    options: Options,
) -> tuple[jax.Array, dict[str, Any]]:
    """Return the loss of a batch, and what is logged of it."""
    base, at = frozen.base, batch.targets.at  # type: ignore[union-attr]
    layers = encoder_and_decoder(base, leaves)
    compressed = compress(frozen, leaves, layers, batch, options, scorer_chooses)
    hidden = read_tails(base, layers[1], leaves.get("bias"), compressed, batch, options)[0]
    taught = teacher_hidden(frozen, batch, options) if options.kl else None
    # logits over 49,152 words are computed again going back: they would not fit beside the rest
    losses = jax.checkpoint(_answer_losses, static_argnums=(4,))
    cross_entropy, objective = losses(base, _pick(hidden, at), taught, batch, options.kl)
    weight = batch.targets.weight  # type: ignore[union-attr]
    total = (objective * weight).sum() / weight.sum()
    logged = _by_ratio(cross_entropy, batch)
    if compressed.log_kvzip is not None and compressed.learned:
        logged["regression"] = regression(frozen, compressed, batch)
        teach = jnp.where(scorer_chooses, options.teach_after, 1.0)
        total = total + teach * sum(logged["regression"].values())
    return total, logged


def _pick(hidden_BxMxD: jax.Array, at_BxA: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden_BxMxD, at_BxA[..., None], 1)


def teacher_hidden(frozen: Frozen, batch: Batch, options: Options) -> jax.Array:
    """Return the full-context model's hidden states at the answers' tokens, `[B, A, D]`."""
    layers = merge(frozen.base, frozen.teacher)  # type: ignore[arg-type]
    # it was trained as a causal model, whatever the student's encoder sees
    causal = replace(options, bidirectional=False)
    entries, _ = encode(frozen.base, layers, None, batch, causal)
    everything = Compressed(entries, None, {}, None)
    hidden, _ = read_tails(frozen.base, layers, None, everything, batch, options)
    return jax.lax.stop_gradient(_pick(hidden, batch.targets.at))  # type: ignore[union-attr]


def _answer_losses(
    base: Any, hidden_BxAxD: jax.Array, taught: jax.Array | None, batch: Batch, kl_weight: float
) -> tuple[jax.Array, jax.Array]:
    """Return cross-entropy and objective `[B, A]`: the first, or its mixture with the KL."""

    def logits(hidden: jax.Array) -> jax.Array:
        return (hidden @ base.embedding_VxD.T).astype(jnp.float32)

    z = logits(hidden_BxAxD)
    log_sum = jax.nn.logsumexp(z, -1)
    wanted = batch.targets.token[..., None]  # type: ignore[union-attr]
    cross_entropy = log_sum - jnp.take_along_axis(z, wanted, -1)[..., 0]
    if taught is None:
        return cross_entropy, cross_entropy
    log_p = jax.nn.log_softmax(logits(taught), -1)
    kl = (jax.nn.softmax(logits(taught), -1) * (log_p - z)).sum(-1) + log_sum
    return cross_entropy, (1 - kl_weight) * cross_entropy + kl_weight * kl


def _by_ratio(cross_entropy: jax.Array, batch: Batch) -> dict[str, Any]:
    """Return the mean cross-entropy, and sums and counts of tokens for each ratio."""
    targets = batch.targets
    assert targets is not None
    weighted = cross_entropy * targets.weight

    def summed(x: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(x.ravel(), targets.ratio.ravel(), len(RATIOS))

    mean = weighted.sum() / targets.weight.sum()
    return {"loss": mean, "sums": summed(weighted), "tokens": summed(targets.weight)}


def regression(frozen: Frozen, compressed: Compressed, batch: Batch) -> dict[str, jax.Array]:
    """Return each learned scorer's mean squared error to log KVzip, over the context's entries."""
    assert compressed.log_kvzip is not None
    base = frozen.base
    context = real_tokens(base, batch).context_BxT[None, :, None]
    entries = context.sum() * base.shape.n_layers * base.shape.n_kv_heads
    wanted = jnp.maximum(compressed.log_kvzip, FLOOR)
    return {
        name: jnp.sum(jnp.where(context, (score - wanted) ** 2, 0.0)) / entries
        for name, score in compressed.learned.items()
    }


def step(
    state: State,
    frozen: Frozen,
    batch: Batch,
    rate: jax.Array,
    scorer_chooses: jax.Array,
    options: Options,
) -> tuple[State, dict[str, Any]]:
    """Return the state after a step of Adam, and what is logged of it."""
    grad = jax.value_and_grad(loss, has_aux=True)
    (_, logged), gradients = grad(state.leaves, frozen, batch, scorer_chooses, options)
    logged["norm"] = {part: optax.global_norm(g) for part, g in gradients.items()}
    gradients = {part: _clipped(g, logged["norm"][part]) for part, g in gradients.items()}
    updates, moments = _adam().update(gradients, state.moments)
    rates = {"scorer": options.scorer_rate, "bias": BIAS_RATE}
    leaves = {
        part: _moved(old, updates[part], rate * rates.get(part, 1.0))
        for part, old in state.leaves.items()
    }
    return State(leaves, moments), logged


def _moved(leaves: Any, updates: Any, by: jax.Array) -> Any:
    return jax.tree.map(lambda p, u: p - by * u, leaves, updates)


def _clipped(gradients: Any, norm: jax.Array) -> Any:
    """Return gradients of at most norm CLIP; zeros if they are not finite.

    Each part is clipped by itself: a scorer that is still far off must not slow the adapters down.
    """
    factor = jnp.minimum(1.0, CLIP / jnp.maximum(norm, 1e-6))
    return jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), g * factor, 0.0), gradients)


def compile_for(
    function: Any, arguments: Callable[[int], tuple[Any, ...]], buckets: Iterable[int]
) -> dict[int, Any]:
    """Return a program for each bucket, all compiled at once.

    Args:
        arguments: gives a bucket's.
    """

    def program(bucket: int) -> Any:
        return function.lower(*arguments(bucket)).compile()

    buckets = list(buckets)
    with ThreadPoolExecutor(4) as pool:
        programs = dict(zip(buckets, pool.map(program, buckets), strict=True))
    log.info("compiled %d programs", len(programs))
    return programs


class Feed:
    """Training batches in the order of the seed, made ahead in a thread."""

    def __init__(self, split: Split, options: Options):
        self.split, self.options = split, options
        self.groups = group_questions(split, options.buckets, np.random.default_rng(0))
        self._ready: queue.Queue[tuple[int, Batch]] = queue.Queue(16)

    def rows(self, bucket: int) -> int:
        """Return the contexts of a batch of a bucket."""
        return max(1, int(self.options.batch * self.options.buckets[bucket].share))

    @property
    def steps_an_epoch(self) -> int:
        return sum(len(groups) // self.rows(b) for b, groups in self.groups.items())

    @property
    def buckets(self) -> list[int]:
        """Those that fill a batch."""
        return [b for b in sorted(self.groups) if len(self.groups[b]) >= self.rows(b)]

    def example(self, bucket: int) -> Batch:
        """Return some batch of a bucket, to compile for."""
        return self._batch(self.groups[bucket][: self.rows(bucket)], bucket, _rng(0))

    def _batch(self, groups: list[Group], bucket: int, rng: np.random.Generator) -> Batch:
        return training_batch(self.split, groups, self.rows(bucket), bucket, self.options, rng)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def next(self) -> tuple[int, Batch]:
        return self._ready.get()

    def _run(self) -> None:
        epoch = 0
        while True:
            rng = np.random.default_rng([self.options.seed, epoch])
            for bucket, groups in self._epoch(rng):
                self._ready.put((bucket, self._batch(groups, bucket, rng)))
            epoch += 1

    def _epoch(self, rng: np.random.Generator) -> list[tuple[int, list[Group]]]:
        order = []
        for bucket, groups in group_questions(self.split, self.options.buckets, rng).items():
            rng.shuffle(groups)  # type: ignore[arg-type]
            rows = self.rows(bucket)
            starts = range(0, len(groups) - rows + 1, rows)
            order += [(bucket, groups[i : i + rows]) for i in starts]
        rng.shuffle(order)  # type: ignore[arg-type]
        return order


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def rate_at(step: int, total: int, peak: float) -> float:
    """Return the learning rate: linear warm-up times a cosine to LAST_RATE."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / total)
    warm = min(1, (step + 1) / max(10, WARM_UP * total))
    return peak * warm * (LAST_RATE + (1 - LAST_RATE) * cosine)


@dataclass
class Trained:
    """The outcome of training."""

    leaves: Leaves
    steps: int
    epochs: float
    seconds: float
    history: list[dict[str, Any]]  # what was logged


def train(leaves: Leaves, frozen: Frozen, options: Options, start: float) -> Trained:
    """Train until the epochs are over, or --seconds after `start` (of `time.time`).

    The number of steps is estimated again from the time of a step whenever the loss is logged, so
    that the learning rate comes to its end with the clock.
    """
    feed = Feed(Split(Path(options.data), options.train), options)
    wanted = max(1, total_steps(options.epochs, feed.steps_an_epoch))
    log.info("%d steps an epoch", feed.steps_an_epoch)
    state, total, done = new_state(leaves), wanted, 0
    now, no = np.float32(0), np.bool_(True)
    programs = compile_for(
        jax.jit(step, static_argnames="options", donate_argnums=0),
        lambda bucket: (state, frozen, feed.example(bucket), now, no, options),
        feed.buckets,
    )
    feed.start()
    begin, recent, history = time.time(), deque[Any](maxlen=100), []
    while done < total:
        bucket, batch = feed.next()
        rate = np.float32(rate_at(done, total, options.lr))
        scorer_chooses = np.bool_(done >= options.warm * total)
        state, logged = programs[bucket](state, frozen, batch, rate, scorer_chooses)
        done += 1
        recent.append(logged)
        if done in LOGGED or done % EVERY == 0 or done == total:
            seconds = time.time() - begin
            history.append({"step": done, "seconds": seconds, **summary(list(recent))})
            log.info("step %d of %d, %.1f s: %s", done, total, seconds, history[-1])
            if done >= LOGGED[-1]:  # earlier, a step's time is that of starting up
                left = options.seconds - (time.time() - start)
                total = max(done, min(wanted, done + int(left / (seconds / done))))
    jax.block_until_ready(state.leaves)
    epochs = done / feed.steps_an_epoch
    return Trained(state.leaves, done, epochs, time.time() - begin, history)


def summary(recent: list[Any]) -> dict[str, Any]:
    """Return means of what the last steps logged."""
    steps = jax.device_get(recent)

    def mean(values: list[Any]) -> float:
        return round(float(np.mean(values)), 6)

    tokens = np.maximum(sum(s["tokens"] for s in steps), 1)
    by_ratio = sum(s["sums"] for s in steps) / tokens
    means = {
        part: {k: mean([s[part][k] for s in steps]) for k in steps[0].get(part, {})}
        for part in ("regression", "norm")
    }
    return {
        "loss": mean([s["loss"] for s in steps]),
        "by_ratio": [round(float(x), 6) for x in by_ratio],
        **means,
    }
