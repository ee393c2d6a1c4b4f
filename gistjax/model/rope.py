"""Rotary positions (Su et al. 2021, arXiv:2104.09864), scaled as in Llama 3 (arXiv:2407.21783)."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from gistjax.model.config import LlamaConfig, RopeScaling


def rope_angles(config: LlamaConfig, positions_BxT: Array) -> tuple[Array, Array]:
    """Cosine and sine `[B, T, 1, H/2]` in fp32 of each position's rotation (arXiv:2104.09864)."""
    freq = rope_frequencies(config.head_dim, config.rope_theta)
    if config.rope_scaling is not None:
        freq = scale_frequencies(freq, config.rope_scaling)
    return rotations(positions_BxT, freq)


def rope_frequencies(head_dim: int, theta: float) -> Array:
    """Radians a position turns, `[H/2]`."""
    return theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rotations(positions_BxT: Array, freq: Array) -> tuple[Array, Array]:
    """Cosine and sine `[B, T, 1, H/2]` in fp32; positions may be fractions."""
    angles = positions_BxT[:, :, None, None].astype(jnp.float32) * freq
    return jnp.cos(angles), jnp.sin(angles)


def scale_frequencies(freq: Array, s: RopeScaling) -> Array:
    """Slow rotations are slowed by `factor`, fast ones kept, those between interpolated."""
    turns = s.original_positions * freq / (2 * math.pi)
    keep = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    keep = jnp.clip(keep, 0.0, 1.0)
    return freq * (keep + (1.0 - keep) / s.factor)


def apply_rope(x_BxTxNxH: Array, rope: tuple[Array, Array]) -> Array:
    """Rotate each head; its first half pairs with its second half, as in Hugging Face weights."""
    cos, sin = rope
    first, second = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxNxH.dtype)
