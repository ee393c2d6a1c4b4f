"""The parts of architectures: matrices, norms, attention, a feed-forward. Parameters are fp32."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec as P

from gistjax.compress.windows import masked_softmax
from gistjax.model.layer import rms_norm
from gistjax.model.rope import apply_rope, rope_frequencies, rotations

NORM_EPS = 1e-6
ROPE_THETA = 10_000.0
REPLICATED, INTO, OUT_OF = P(), P("fsdp", "tensor"), P("tensor", "fsdp")
"""Layouts on the mesh of a matrix into a wide middle, and of one out of it."""


def parameter(value: Array, spec: P = REPLICATED, decay: bool = True) -> nnx.Param[Array]:
    """A trained array with its sharding; `decay=False` keeps weight decay off its rows."""
    return nnx.Param(value, partition_spec=spec, decay=decay)


def matrix(key: Array, d_in: int, d_out: int, spec: P) -> nnx.Param[Array]:
    """A weight matrix whose outputs have about the variance of its inputs."""
    return parameter(jax.random.normal(key, (d_in, d_out), jnp.float32) / jnp.sqrt(d_in), spec)


def apply(x: Array, weight: nnx.Param[Array]) -> Array:
    """`x @ weight` in x's dtype."""
    return x @ weight[...].astype(x.dtype)


def norm(x: Array, scale: nnx.Param[Array]) -> Array:
    """RMS norm with a trained scale, in x's dtype."""
    return rms_norm(x, scale[...].astype(x.dtype), NORM_EPS)


def standardize(states: Array) -> Array:
    """RMS norm without parameters: it tames the huge states that some tokens have."""
    return rms_norm(states, jnp.ones((), states.dtype), NORM_EPS)


def fitting_heads(D: int, n_heads: int) -> int:
    """Return the most heads, up to `n_heads`, that divide D into even widths, which RoPE turns.

    Raises:
        ValueError: if D is odd.
    """
    if D % 2:
        raise ValueError(f"rotary attention needs an even width, not {D}")
    return next(n for n in range(n_heads, 0, -1) if D % n == 0 and D // n % 2 == 0)


class Attention(nnx.Module):
    """Multi-head attention with rotary positions: 4·D² parameters."""

    def __init__(self, D: int, n_heads: int, key: Array):
        keys = jax.random.split(key, 4)
        self.head_dim = D // fitting_heads(D, n_heads)
        self.query, self.key, self.value = (matrix(k, D, D, INTO) for k in keys[:3])
        self.out = matrix(keys[3], D, D, OUT_OF)

    def __call__(
        self, x_BxMxD: Array, x_pos_BxM: Array, y_BxCxD: Array, y_pos_BxC: Array, mask_BxMxC: Array
    ) -> Array:
        """x asks, y answers: `[B, M, D]`."""
        z_BxMxNxH = jax.nn.dot_product_attention(
            self._heads(x_BxMxD, self.query, x_pos_BxM),
            self._heads(y_BxCxD, self.key, y_pos_BxC),
            self._heads(y_BxCxD, self.value),
            mask=mask_BxMxC[:, None],
            implementation="xla",
        )
        return apply(z_BxMxNxH.reshape(x_BxMxD.shape), self.out)

    def weights(
        self, x_BxMxD: Array, x_pos_BxM: Array, y_BxCxD: Array, y_pos_BxC: Array, mask_BxMxC: Array
    ) -> Array:
        """Return the weight of each y for each x, mean over heads, `[B, M, C]` in fp32."""
        q_BxMxNxH = self._heads(x_BxMxD, self.query, x_pos_BxM)
        k_BxCxNxH = self._heads(y_BxCxD, self.key, y_pos_BxC)
        scores_BxNxMxC = jnp.einsum("bmnh,bcnh->bnmc", q_BxMxNxH, k_BxCxNxH)
        scores_BxNxMxC = scores_BxNxMxC.astype(jnp.float32) / math.sqrt(self.head_dim)
        return jnp.mean(masked_softmax(scores_BxNxMxC, mask_BxMxC[:, None]), axis=1)

    def _heads(
        self, z_BxXxD: Array, weight: nnx.Param[Array], pos_BxX: Array | None = None
    ) -> Array:
        z_BxXxNxH = apply(z_BxXxD, weight).reshape(*z_BxXxD.shape[:2], -1, self.head_dim)
        if pos_BxX is None:
            return z_BxXxNxH
        freq = rope_frequencies(self.head_dim, ROPE_THETA)
        return apply_rope(z_BxXxNxH, rotations(pos_BxX, freq))


class FeedForward(nnx.Module):
    """Two matrices with a GELU between: 2·D·F parameters."""

    def __init__(self, D: int, F: int, key: Array):
        key_in, key_out = jax.random.split(key)
        self.into, self.out = matrix(key_in, D, F, INTO), matrix(key_out, F, D, OUT_OF)

    def __call__(self, x_BxMxD: Array) -> Array:
        return apply(jax.nn.gelu(apply(x_BxMxD, self.into)), self.out)
