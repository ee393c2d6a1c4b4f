"""How a learned scorer is taught, while the model learns to answer from what it leaves.

Shapes: E contexts, B rows of questions on them, a multiple of E in the order of the contexts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from gistjax.compress.context import CompressedContext
from gistjax.compress.learned import LEAST
from gistjax.compress.scorers import SCORERS, Reading
from gistjax.compress.select import Selector, kept_context, kept_of, second_pass
from gistjax.compress.spread import Cut
from gistjax.model.kv_cache import Cache
from gistjax.model.llama import Llama
from gistjax.model.lora import LoRA, frozen
from gistjax.model.masks import lengths_to_valid

FLOOR = -12.0
"""Least logarithm of KVzip's scores that a scorer is taught."""


def learn(
    selector: Selector,
    base: Llama,
    lora: LoRA | None,
    prefix_ids_P: Array,
    context: tuple[Array, Array],
    ratio: Array | None,
    kvzip_chooses: Array,
) -> tuple[CompressedContext, Array]:
    """Read contexts as a `Selector` does, so that a learned scorer has two teachers.

    One is KVzip's score of the model as it is, by regression of its logarithm, if it has a weight
    or chooses at first. The other is whatever is read of the entries: going back, each has a gate
    that is the sigmoid of its score's distance to the threshold (straight-through, Bengio et al.
    2013, arXiv:1308.3432).

    Args:
        ratio: tokens an entry, one for each row of questions; by default the configured one.
        kvzip_chooses: True while it still chooses for the scorer.

    Returns:
        What is kept, its masks those of the rows, and the mean squared error `[E]`; 0 where KVzip
        teaches nothing.
    """
    ids_ExC, length_E = context
    E, C = ids_ExC.shape
    cache, score_LxExKxC = selector.read(base, lora, prefix_ids_P, context)
    reading = selector.reading(prefix_ids_P, context)
    error_E = jnp.zeros(E)
    if selector.kvzip_teaches:
        log_LxExKxC = log_kvzip(selector, base, lora, cache, reading)
        error = jnp.square(score_LxExKxC - jnp.maximum(log_LxExKxC, FLOOR))
        real_Ex1xC = lengths_to_valid(length_E, C)[:, None]
        error_E = jnp.sum(jnp.where(real_Ex1xC, error, 0.0), axis=(0, 2, 3))
        score_LxExKxC = jnp.where(kvzip_chooses, log_LxExKxC, score_LxExKxC)
    total_B = selector.entries(length_E, ratio)
    cut = selector.cut(jax.lax.stop_gradient(score_LxExKxC), length_E, total_B)
    temperature = selector.temperature
    gate = gate_of(score_LxExKxC, cut, length_E, temperature) if temperature else None
    kept = kept_of(cache, reading.prefix, C, cut.kept, gate)
    taught = kept_context(prefix_ids_P, base.embed(ids_ExC[:, :0]), kept, length_E)
    return taught, error_E / (selector.heads * length_E)


def log_kvzip(
    selector: Selector, base: Llama, lora: LoRA | None, cache: Cache, reading: Reading
) -> Array:
    """Logarithm of KVzip's scores of what was read, `[L, E, K, C]`, without a gradient."""
    cache = jax.lax.stop_gradient(cache)
    repetition = selector.repetition(base, reading.ids_BxC, reading.length_B)
    score = second_pass(base, frozen(lora), cache, reading, repetition, SCORERS["kvzip"])
    return jnp.log(jnp.maximum(score, LEAST))


def gate_of(score_LxExKxC: Array, cut: Cut, length_E: Array, temperature: float) -> Array:
    """What is kept as 1 or 0, fp32 `[L, B, K, C]`, with a sigmoid's gradient.

    There is none where nothing is decided: of padding, and where everything is kept or nothing.
    """
    L, E, K, C = score_LxExKxC.shape
    B = cut.kept.shape[1]
    decided_LxBxKx1 = jnp.isfinite(cut.threshold)[..., None]
    threshold_LxBxKx1 = jnp.where(decided_LxBxKx1, cut.threshold[..., None], 0.0)
    score_LxBxKxC = jnp.repeat(score_LxExKxC, B // E, axis=1)
    soft = jax.nn.sigmoid((score_LxBxKxC - threshold_LxBxKx1) / temperature)
    real_BxC = jnp.repeat(lengths_to_valid(length_E, C), B // E, axis=0)
    soft = jnp.where(real_BxC[:, None] & decided_LxBxKx1, soft, 0.0)
    return cut.kept + (soft - jax.lax.stop_gradient(soft))
