"""One layer of a decoder: its frozen weights, and a pass through it that can be watched.

Shapes are those of `gistjax.model.llama`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.model.attention import attention
from gistjax.model.config import LlamaConfig
from gistjax.model.kv_cache import CacheLayer
from gistjax.model.lora import LoRAWeights, lora_dot
from gistjax.model.masks import Bidirectional, Mask
from gistjax.model.rope import apply_rope
from gistjax.runtime.sharding import gathered_sharding, shard_rows


class Frozen(nnx.Variable[Array]):
    """A weight of the base. Trainable weights are `nnx.Param`, so the two never share a tree."""


Initializer = Callable[[tuple[int, ...], float], Array]
"""Function of a weight's shape and standard deviation (0 stands for ones) that makes it."""


def random_initializer(key: Array, dtype: jnp.dtype) -> Initializer:
    """Normal weights, ones for norms; a fresh key for each weight."""
    keys = iter(jax.random.split(key, 16))

    def make(shape: tuple[int, ...], std: float) -> Array:
        if std == 0.0:
            return jnp.ones(shape, dtype)
        return (std * jax.random.normal(next(keys), shape, jnp.float32)).astype(dtype)

    return make


class Layer(nnx.Module):
    """The weights of one layer, or of all of them stacked along a leading axis L.

    Projections of the same input are one matrix: `qkv` holds for each key/value head its G query
    heads, its key and its value head, `gate_up` both halves of the feed-forward. The axis that
    tensor parallelism splits stays an axis.
    """

    def __init__(self, config: LlamaConfig, make: Initializer, lead: tuple[int, ...] = ()):
        D, F, K, H = config.d_model, config.d_ff, config.n_kv_heads, config.head_dim
        NH, KH = config.n_heads * H, K * H
        std = 0.02
        out_std = std / math.sqrt(2 * config.n_layers)
        self.attention_norm = Frozen(make((*lead, D), 0.0))
        q, k, v = (make((*lead, D, width), std) for width in (NH, KH, KH))
        self.qkv = Frozen(fuse_qkv(q, k, v, K))  # [D, K, G + 2, H]
        biased = config.qkv_biases
        bq, bk, bv = (make((*lead, width), std) if biased else None for width in (NH, KH, KH))
        self.qkv_bias = Frozen(fuse_qkv(bq, bk, bv, K)) if biased else None  # [K, G + 2, H]
        self.q_norm = Frozen(make((*lead, H), 0.0)) if config.qk_norms else None
        self.k_norm = Frozen(make((*lead, H), 0.0)) if config.qk_norms else None
        self.o = Frozen(make((*lead, NH, D), out_std))
        self.ffn_norm = Frozen(make((*lead, D), 0.0))
        gate, up = (make((*lead, D, F), std) for _ in range(2))
        self.gate_up = Frozen(jnp.stack([gate, up], axis=-2))  # [D, 2, F]
        self.down = Frozen(make((*lead, F, D), out_std))


def fuse_qkv(q: Any, k: Any, v: Any, n_kv_heads: int) -> Any:
    """`[…, N·H]`, `[…, K·H]`, `[…, K·H]` (numpy or JAX) as one `[…, K, G + 2, H]`."""
    H = k.shape[-1] // n_kv_heads
    xp = np if isinstance(q, np.ndarray) else jnp
    return xp.concatenate([w.reshape(*w.shape[:-1], n_kv_heads, -1, H) for w in (q, k, v)], axis=-2)


@dataclass(frozen=True)
class Inputs:
    """Values that all layers share in one call."""

    config: LlamaConfig
    rope: tuple[Array, Array]
    mask_BxTxU: Mask | None
    kernel: str
    mesh: Mesh | None
    observe: Observer | None = None

    def rope_of(self, layer: Array | int) -> tuple[Array, Array]:
        """Cosine and sine of a layer's rotation; of one without it 1 and 0, which turn nothing."""
        if not self.config.unrotated_layers:
            return self.rope
        rotates = jnp.asarray(self.config.rotates)[layer]
        return jnp.where(rotates, self.rope[0], 1.0), jnp.where(rotates, self.rope[1], 0.0)


Adapters = dict[str, LoRAWeights]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """What the attention of one layer reads in a pass over T positions."""

    h_BxTxD: Array  # the layer's normed input
    unrotated_q_BxTxKxGxH: Array
    unrotated_k_BxTxKxH: Array
    q_BxTxKxGxH: Array
    k_BxTxKxH: Array
    v_BxTxKxH: Array
    cache: CacheLayer | None  # with this pass's keys and values
    mask_BxTxU: Array | None  # None: causal


Observer = Callable[[Any, Seen], Any]
"""Function of its own weights for a layer and of what is seen there, called in every layer."""


def run_layer(
    layer: Layer,
    adapters: Adapters,
    x_BxTxD: Array,
    inputs: Inputs,
    rope: tuple[Array, Array],
    cache: CacheLayer | None,
    logit_positions_BxW: Array | None = None,
    observer: Any = None,
) -> tuple[Array, CacheLayer | None, Any]:
    """Attention and feed-forward with their residuals.

    The cache, if there is one, gets the new keys and values. With `logit_positions`, only those
    positions ask and are returned, `[B, W, D]`; all of them are asked.

    Args:
        observer: this layer's part of the observer's weights.

    Returns:
        States, cache, and what the observer returns; None without one.
    """
    config = inputs.config

    def project(name: str, h_BxTxI: Array) -> Array:
        w = getattr(layer, name)[...]
        layout = gathered_sharding(f"base/layers/{name}", w.shape, inputs.mesh)
        return lora_dot(h_BxTxI, w, adapters.get(name), layout)

    x_BxTxD = shard_rows(x_BxTxD, inputs.mesh)
    h_BxTxD = rms_norm(x_BxTxD, layer.attention_norm[...], config.rms_eps)
    qkv_BxTxKxJxH = project("qkv", h_BxTxD)
    if layer.qkv_bias is not None:
        qkv_BxTxKxJxH += layer.qkv_bias[...].astype(qkv_BxTxKxJxH.dtype)
    cos, sin = rope
    rope_KxG = (cos[..., None, :], sin[..., None, :])
    # Splitting, unlike slicing, has a gradient that is put together in one pass.
    G = qkv_BxTxKxJxH.shape[3] - 2
    q_BxTxKxGxH, k_BxTxKx1xH, v_BxTxKx1xH = jnp.split(qkv_BxTxKxJxH, [G, G + 1], axis=3)
    if layer.q_norm is not None and layer.k_norm is not None:
        q_BxTxKxGxH = rms_norm(q_BxTxKxGxH, layer.q_norm[...], config.rms_eps)
        k_BxTxKx1xH = rms_norm(k_BxTxKx1xH, layer.k_norm[...], config.rms_eps)
    unrotated = q_BxTxKxGxH, k_BxTxKx1xH[:, :, :, 0]
    q_BxTxKxGxH = apply_rope(q_BxTxKxGxH, rope_KxG)
    k_BxTxKxH, v_BxTxKxH = apply_rope(k_BxTxKx1xH, rope_KxG)[:, :, :, 0], v_BxTxKx1xH[:, :, :, 0]
    q_BxTxNxH = q_BxTxKxGxH.reshape(*x_BxTxD.shape[:2], -1, config.head_dim)
    if cache is not None:
        cache = cache.write(k_BxTxKxH, v_BxTxKxH)
    mask_BxTxU, seen, observed = inputs.mask_BxTxU, cache, None
    if inputs.observe is not None:
        sees_BxTxU = _explicit(mask_BxTxU, x_BxTxD.shape[1])
        read = Seen(h_BxTxD, *unrotated, q_BxTxKxGxH, k_BxTxKxH, v_BxTxKxH, cache, sees_BxTxU)
        observed = inputs.observe(observer, read)
    if logit_positions_BxW is not None:
        T = x_BxTxD.shape[1]
        sees_BxTxU = _explicit(mask_BxTxU, T)
        if sees_BxTxU is None:
            seen, mask_BxTxU = None, jnp.arange(T) <= logit_positions_BxW[:, :, None]
        else:
            mask_BxTxU = take_positions(sees_BxTxU, logit_positions_BxW)
        x_BxTxD, q_BxTxNxH = (take_positions(a, logit_positions_BxW) for a in (x_BxTxD, q_BxTxNxH))
    y_BxTxNxH = attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, seen, mask_BxTxU, inputs.kernel)
    x_BxTxD = x_BxTxD + project("o", y_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1))
    gate_up_BxTx2xF = project("gate_up", rms_norm(x_BxTxD, layer.ffn_norm[...], config.rms_eps))
    # Else XLA keeps both products that it is the sum of for the backward pass.
    gate_up_BxTx2xF = jax.lax.optimization_barrier(gate_up_BxTx2xF)
    gate_BxTx1xF, up_BxTx1xF = jnp.split(gate_up_BxTx2xF, 2, axis=2)
    h_BxTxF = (jax.nn.silu(gate_BxTx1xF) * up_BxTx1xF)[:, :, 0]
    return x_BxTxD + project("down", h_BxTxF), cache, observed


def _explicit(mask_BxTxU: Mask | None, size: int) -> Array | None:
    """The array that a mask of `size` positions stands for."""
    return mask_BxTxU.array(size) if isinstance(mask_BxTxU, Bidirectional) else mask_BxTxU


def take_positions(x_BxT: Array, index_BxW: Array) -> Array:
    """Some positions of each row of `[B, T, …]`: `[B, W, …]`."""
    index = index_BxW.reshape(*index_BxW.shape, *(1 for _ in x_BxT.shape[2:]))
    return jnp.take_along_axis(x_BxT, index, axis=1)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Root-mean-square norm over the last axis, in fp32 (arXiv:1910.07467)."""
    x_32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x_32 * x_32, axis=-1, keepdims=True) + eps)
    return (x_32 * scale).astype(x.dtype) * weight.astype(x.dtype)
