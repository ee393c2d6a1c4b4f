"""One softmax over several sets of keys, of which some may have been thrown away."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.selection.model import Base

NEVER = -1e30
CLIP = 4.0
"""Bounds what an entry that was thrown away may weigh in the gate's gradient: e⁴ kept ones."""

CUDNN_TOLERANCE = 0.03

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A set of keys and who may read them.

    Keys and values of five axes `[B, C, t, K, H]` are pieces: those of a piece are read only by the
    queries of the same piece.
    """

    keys: jax.Array  # [B, T, K, H] or [B, C, t, K, H]
    values: jax.Array
    mask: jax.Array  # bool [B, 1 or K, M or 1, T]
    bias: jax.Array | None = None  # added to the logits, as the mask
    gate: jax.Array | None = None  # straight-through, as the mask; takes the mask's place


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def dot(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return an einsum in fp32 whose two gradients are products in the arguments' dtype."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _dot_forward(spec: str, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
    return dot(spec, x, y), (x, y)


def _dot_backward(spec: str, xy: Any, gradient: jax.Array) -> Any:
    return jax.vjp(partial(jnp.einsum, spec), *xy)[1](gradient.astype(xy[0].dtype))


dot.defvjp(_dot_forward, _dot_backward)


def _logits(query_BxMxKxGxH: jax.Array, keys: jax.Array) -> jax.Array:
    """Return `[B, K, G, M, T]` in fp32."""
    query = query_BxMxKxGxH * query_BxMxKxGxH.shape[-1] ** -0.5
    if keys.ndim == 4:
        return dot("bmkgh,btkh->bkgmt", query, keys)
    B, C, T = keys.shape[:3]
    K, G, H = query.shape[2:]
    logits = dot("bcmkgh,bctkh->bkgcmt", query.reshape(B, C, -1, K, G, H), keys)
    return logits.reshape(B, K, G, -1, T)


def _weighted(weights_BxKxGxMxT: jax.Array, values: jax.Array) -> jax.Array:
    """Return sums of values `[B, M, K, G, H]` in fp32."""
    weights = weights_BxKxGxMxT.astype(values.dtype)
    if values.ndim == 4:
        return dot("bkgmt,btkh->bmkgh", weights, values)
    B, C, T = values.shape[:3]
    K, G = weights.shape[1:3]
    out = dot("bkgcmt,bctkh->bcmkgh", weights.reshape(B, K, G, C, -1, T), values)
    return out.reshape(B, -1, K, G, values.shape[-1])


def _exponentials(query: jax.Array, parts: list[Part]) -> tuple[list[jax.Array], jax.Array]:
    """Return each part's exponentials `[B, K, G, M, T]` and the sum of all `[B, K, G, M]`.

    A gate is 1 or 0 going forward; going back it carries a sigmoid's gradient, also for entries
    that were thrown away. It stands in the numerator and the sum, so what such an entry *would*
    have been worth decides its gradient. That needs its exponential: its logit is not masked.

    The maximum is taken over entries that are kept, so only the others can exceed it. `minimum` at
    `CLIP` instead of 0 matters: at 0 the largest logit ties and would lose half its gradient.
    """

    def masked(logits: jax.Array, part: Part) -> jax.Array:
        return jnp.where(part.mask[:, :, None], logits, NEVER)

    logits = [
        _logits(query, part.keys) + (0.0 if part.bias is None else part.bias[:, :, None])
        for part in parts
    ]
    reads = [masked(z, part) for z, part in zip(logits, parts, strict=True)]
    top = jnp.max(jnp.stack([jnp.max(z, -1) for z in reads]), 0)[..., None]
    top = jax.lax.stop_gradient(top)

    def exponentials(free: jax.Array, read: jax.Array, part: Part) -> jax.Array:
        if part.gate is None:
            return jnp.exp(read - top)
        return jnp.exp(jnp.minimum(free - top, CLIP)) * part.gate[:, :, None]

    e = [exponentials(*three) for three in zip(logits, reads, parts, strict=True)]
    return e, sum((x.sum(-1) for x in e[1:]), e[0].sum(-1))


def attend(query_BxMxKxGxH: jax.Array, *parts: Part) -> jax.Array:
    """Return `[B, M, K, G, H]`, what each query reads in all parts under one softmax."""
    return attend_and_weigh(query_BxMxKxGxH, *parts)[0]


def attend_and_weigh(query_BxMxKxGxH: jax.Array, *parts: Part) -> tuple[jax.Array, jax.Array]:
    """Return as `attend`, and the weights in the first part `[B, K, G, M, T]`."""
    e, total = _exponentials(query_BxMxKxGxH, list(parts))
    read = [_weighted(x, part.values) for x, part in zip(e, parts, strict=True)]
    out = sum(read[1:], read[0]) / total.transpose(0, 3, 1, 2)[..., None]
    return out.astype(query_BxMxKxGxH.dtype), e[0] / total[..., None]


def fused_causal(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return causal attention by cuDNN, `[B, T, N, H]`; padding may only follow the text."""
    flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
    return jax.nn.dot_product_attention(flat, key, value, is_causal=True, implementation="cudnn")


def cudnn_agrees(base: Base) -> bool:
    """Return True if cuDNN's attention is there and gives our values and gradients.

    A device or a version without it is no error: attention then runs in XLA.
    """
    if jax.default_backend() != "gpu" or base.dtype != jnp.bfloat16:
        return False
    K, H, T = base.shape.n_kv_heads, base.shape.head_dim, 152
    sizes = [(2, T, K, base.shape.n_heads // K, H), (2, T, K, H), (2, T, K, H)]
    tensors = [
        jax.random.normal(jax.random.key(i), size, base.dtype) for i, size in enumerate(sizes)
    ]
    causal = (jnp.arange(T)[:, None] >= jnp.arange(T))[None, None]

    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attend(query, Part(key, value, causal))

    def run(attention: Any) -> list[jax.Array]:
        def energy(*args: jax.Array) -> jax.Array:
            return (attention(*args).astype(jnp.float32) ** 2).sum()

        return jax.tree.leaves(jax.jit(jax.value_and_grad(energy, (0, 1, 2)))(*tensors))

    def error(got: jax.Array, wanted: jax.Array) -> float:
        difference = jnp.linalg.norm((got - wanted).astype(jnp.float32))
        return float(difference / jnp.linalg.norm(wanted.astype(jnp.float32)))

    try:
        errors = [error(*pair) for pair in zip(run(fused_causal), run(plain), strict=True)]
    except Exception as problem:  # cuDNN is missing, or refuses the shape: many types
        log.info("no cuDNN attention: %.200r", problem)
        return False
    log.info("cuDNN attention differs by %s", [round(e, 4) for e in errors])
    return max(errors) < CUDNN_TOLERANCE
