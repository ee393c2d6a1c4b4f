"""Llama, Mistral, Qwen and SmolLM in Flax NNX: explicit masks and positions, adapters beside them.

The layers are unrolled, or stacked and scanned over. Shapes are suffixes of names, one letter an
axis:

    B batch rows          T positions that ask (queries)   D model width
    L layers              U positions that are asked       F feed-forward width
    N query heads         W positions whose states are wanted
    K key/value heads     G query heads per K (N = K·G)    H head width
    R LoRA rank           I, O width in, out               V vocabulary
    J heads of a K: G queries, a key, a value

Architecture: Touvron et al. 2023 (arXiv:2307.09288) and Grattafiori et al. 2024 (arXiv:2407.21783).
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
from gistjax.model.kv_cache import Cache, CacheLayer
from gistjax.model.lora import LoRA, LoRAWeights, lora_dot
from gistjax.model.rope import apply_rope, rope_angles
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
    mask_BxTxU: Array | None
    kernel: str
    mesh: Mesh | None

    def rope_of(self, layer: Array | int) -> tuple[Array, Array]:
        """Cosine and sine of a layer's rotation; of one without it 1 and 0, which turn nothing."""
        if not self.config.unrotated_layers:
            return self.rope
        rotates = jnp.asarray(self.config.rotates)[layer]
        return jnp.where(rotates, self.rope[0], 1.0), jnp.where(rotates, self.rope[1], 0.0)


@dataclass(frozen=True)
class Execution:
    """Settings with which a decoder runs, whatever its weights are."""

    dtype: str = ""  # of activations and products; empty: as the weights are stored
    kernel: str = "xla"  # of causal attention: xla | cudnn
    remat: bool = False  # recompute each layer's activations in the backward pass
    mesh: Mesh | None = None  # that the weights are spread over


Adapters = dict[str, LoRAWeights]


def run_layer(
    layer: Layer,
    adapters: Adapters,
    x_BxTxD: Array,
    inputs: Inputs,
    rope: tuple[Array, Array],
    cache: CacheLayer | None,
    logit_positions_BxW: Array | None = None,
) -> tuple[Array, CacheLayer | None]:
    """Attention and feed-forward with their residuals.

    The cache, if there is one, gets the new keys and values. With `logit_positions`, only those
    positions ask and are returned, `[B, W, D]`; all of them are asked.
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
    q_BxTxKxGxH = apply_rope(q_BxTxKxGxH, rope_KxG)
    k_BxTxKxH, v_BxTxKxH = apply_rope(k_BxTxKx1xH, rope_KxG)[:, :, :, 0], v_BxTxKx1xH[:, :, :, 0]
    q_BxTxNxH = q_BxTxKxGxH.reshape(*x_BxTxD.shape[:2], -1, config.head_dim)
    if cache is not None:
        cache = cache.write(k_BxTxKxH, v_BxTxKxH)
    mask_BxTxU, seen = inputs.mask_BxTxU, cache
    if logit_positions_BxW is not None:
        if mask_BxTxU is None:
            seen, mask_BxTxU = None, jnp.arange(x_BxTxD.shape[1]) <= logit_positions_BxW[:, :, None]
        else:
            mask_BxTxU = take_positions(mask_BxTxU, logit_positions_BxW)
        x_BxTxD, q_BxTxNxH = (take_positions(a, logit_positions_BxW) for a in (x_BxTxD, q_BxTxNxH))
    y_BxTxNxH = attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, seen, mask_BxTxU, inputs.kernel)
    x_BxTxD = x_BxTxD + project("o", y_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1))
    gate_up_BxTx2xF = project("gate_up", rms_norm(x_BxTxD, layer.ffn_norm[...], config.rms_eps))
    # Else XLA keeps both products that it is the sum of for the backward pass.
    gate_up_BxTx2xF = jax.lax.optimization_barrier(gate_up_BxTx2xF)
    gate_BxTx1xF, up_BxTx1xF = jnp.split(gate_up_BxTx2xF, 2, axis=2)
    h_BxTxF = (jax.nn.silu(gate_BxTx1xF) * up_BxTx1xF)[:, :, 0]
    return x_BxTxD + project("down", h_BxTxF), cache


def take_positions(x_BxT: Array, index_BxW: Array) -> Array:
    """Some positions of each row of `[B, T, …]`: `[B, W, …]`."""
    index = index_BxW.reshape(*index_BxW.shape, *(1 for _ in x_BxT.shape[2:]))
    return jnp.take_along_axis(x_BxT, index, axis=1)


class Llama(nnx.Module):
    """A pretrained decoder. Every weight is `Frozen`; adapters are passed in beside it.

    Args:
        config: sizes.
        make: fills the weights; their dtype is how they are stored.
        scan: keep the layers stacked and scan over them: compiles fast, runs slower, because every
            step copies each layer out of the stack. Otherwise each layer is a set of arrays of its
            own and the program is unrolled.
        execution: how it runs.
    """

    def __init__(
        self,
        config: LlamaConfig,
        make: Initializer,
        scan: bool = True,
        execution: Execution | None = None,
    ):
        self.config, self.execution = config, execution or Execution()
        V, D = config.vocab_size, config.d_model
        self.embedding = Frozen(make((V, D), 0.02))
        stacked = Layer(config, make, (config.n_layers,))
        self.layers = stacked if scan else unstack(stacked)
        self.final_norm = Frozen(make((D,), 0.0))
        self.output = None if config.tie_embeddings else Frozen(make((V, D), 0.02))

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of all activations; weights that are stored in another are cast at use."""
        stored: jnp.dtype = self.embedding[...].dtype
        return jnp.dtype(self.execution.dtype) if self.execution.dtype else stored

    def embed(self, ids_BxT: Array) -> Array:
        """Token embeddings `[B, T, D]`."""
        x_BxTxD = jnp.take(self.embedding[...], ids_BxT, axis=0).astype(self.dtype)
        return shard_rows(x_BxTxD, self.execution.mesh)

    def logits(self, h_BxTxD: Array) -> Array:
        """Vocabulary scores in fp32 of states that `__call__` returned (already normed)."""
        weights_VxD = self.embedding[...] if self.output is None else self.output[...]
        return _vocabulary_scores(h_BxTxD, weights_VxD)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """A cache for `length` positions, stacked like the layers."""
        stacked = isinstance(self.layers, Layer)
        return Cache.empty(self.config, batch, length, self.dtype, stacked)

    def __call__(
        self,
        x_BxTxD: Array,
        positions_BxT: Array,
        mask_BxTxU: Array | None = None,
        lora: LoRA | None = None,
        cache: Cache | None = None,
        start: Array | int = 0,
        n_layers: int | None = None,
        logit_positions_BxW: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        """Run the layers over embeddings.

        Args:
            x_BxTxD: inputs, in `dtype`.
            positions_BxT: rotary positions; one row may stand for all.
            mask_BxTxU: True where a position may look, U being T or the cache's length. It may be
                of the last positions only: those before them look at each other causally. Without
                a mask all do.
            lora: adapters, stacked along the layers.
            cache: keys and values seen so far; this call's are written from index `start` on.
            start: index in the cache of the first of the T positions; 0 if any of them is causal.
            n_layers: run only so many layers (without a cache).
            logit_positions_BxW: return the states of these positions only; the last layer spares
                the others' feed-forward. A mask must then be of all T positions, or none.

        Returns:
            States `[B, T, D]` or `[B, W, D]`, after the final norm if all layers ran, and the new
            cache.
        """
        depth = self.config.n_layers if n_layers is None else n_layers
        inputs = Inputs(
            self.config,
            rope_angles(self.config, positions_BxT),
            mask_BxTxU,
            self.execution.kernel,
            self.execution.mesh,
        )
        adapters = {} if lora is None else lora.fused(self.config, x_BxTxD.dtype)
        run = self._scan if isinstance(self.layers, Layer) else self._unroll
        x_BxTxD, cache = run(x_BxTxD, inputs, adapters, cache, start, depth, logit_positions_BxW)
        if depth == self.config.n_layers:
            x_BxTxD = rms_norm(x_BxTxD, self.final_norm[...], self.config.rms_eps)
        return x_BxTxD, cache

    def merged(self, lora: LoRA) -> Llama:
        """Return a copy with adapters, on all of its layers, added to its weights in `dtype`."""
        base = nnx.merge(*nnx.split(self))
        stacked = isinstance(base.layers, Layer)
        layers: Any = [base.layers] if stacked else base.layers
        for name, (a_LxIxR, b_LxRxO) in lora.fused(self.config, self.dtype).items():
            change_LxIxO = jnp.einsum("lir,lr...->li...", a_LxIxR, b_LxRxO)
            assert len(change_LxIxO) == self.config.n_layers
            changes = [change_LxIxO] if stacked else jnp.unstack(change_LxIxO)
            for layer, change in zip(layers, changes, strict=True):
                setattr(layer, name, Frozen(getattr(layer, name)[...].astype(self.dtype) + change))
        return base

    def _unroll(
        self,
        x_BxTxD: Array,
        inputs: Inputs,
        adapters: Adapters,
        cache: Cache | None,
        start: Array | int,
        depth: int,
        logit_positions_BxW: Array | None,
    ) -> tuple[Array, Cache | None]:
        assert isinstance(self.layers, nnx.List)

        def body(
            weights: Any,
            adapters: Adapters,
            x: Array,
            rope: tuple[Array, Array],
            part: CacheLayer | None,
            logit_positions: Array | None,
        ) -> Any:
            layer = nnx.merge(graphdef, weights)
            return run_layer(layer, adapters, x, inputs, rope, part, logit_positions)

        body = jax.jit(
            jax.checkpoint(body) if self.execution.remat else body
        )  # traced once for all layers
        parts = {name: (jnp.unstack(a), jnp.unstack(b)) for name, (a, b) in adapters.items()}
        for i, layer in enumerate(self.layers[:depth]):
            graphdef, weights = nnx.split(layer)
            own = {name: LoRAWeights(a[i], b[i]) for name, (a, b) in parts.items()}
            part = None if cache is None else cache.layer(i, start)
            logit_positions = logit_positions_BxW if i == depth - 1 else None
            x_BxTxD, part = body(weights, own, x_BxTxD, inputs.rope_of(i), part, logit_positions)
            cache = cache if cache is None else cache.put(i, part)
        return x_BxTxD, cache

    def _scan(
        self,
        x_BxTxD: Array,
        inputs: Inputs,
        adapters: Adapters,
        cache: Cache | None,
        start: Array | int,
        depth: int,
        logit_positions_BxW: Array | None,
    ) -> tuple[Array, Cache | None]:
        graphdef, stacked = nnx.split(self.layers)
        weights = jax.tree.map(lambda w: w[:depth], (stacked, adapters))

        def body(carry: tuple[Array, Cache | None], xs: Any) -> tuple[Any, None]:
            x, cache = carry
            index, (layer, adapters) = xs
            part = None if cache is None else cache.layer(index, start)
            merged: Any = nnx.merge(graphdef, layer)
            x, part = run_layer(merged, adapters, x, inputs, inputs.rope_of(index), part)
            return (x, cache if part is None or cache is None else cache.put(index, part)), None

        if self.execution.remat:
            body = jax.checkpoint(body)
        (x_BxTxD, cache), _ = jax.lax.scan(body, (x_BxTxD, cache), (jnp.arange(depth), weights))
        if logit_positions_BxW is not None:
            x_BxTxD = take_positions(x_BxTxD, logit_positions_BxW)
        return x_BxTxD, cache


@jax.custom_vjp
def _vocabulary_scores(h: Array, weights_VxD: Array) -> Array:
    weights_VxD = weights_VxD.astype(h.dtype)
    return jnp.einsum("...d,vd->...v", h, weights_VxD, preferred_element_type=jnp.float32)


def _scores_forward(h: Array, weights_VxD: Array) -> tuple[Array, tuple[Array, Array]]:
    return _vocabulary_scores(h, weights_VxD), (h, weights_VxD)


def _scores_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    """In the states' dtype: a product of fp32 and bf16 would run in fp32; weights are frozen."""
    h, weights_VxD = residuals
    dh = jnp.einsum("...v,vd->...d", dy.astype(h.dtype), weights_VxD.astype(h.dtype))
    return dh, None


_vocabulary_scores.defvjp(_scores_forward, _scores_backward)


def unstack(stacked: Layer) -> nnx.List[Layer]:
    """The layers one by one."""
    graphdef, state = nnx.split(stacked)
    leaves, treedef = jax.tree.flatten(state)
    layers = zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True)
    return nnx.List(nnx.merge(graphdef, jax.tree.unflatten(treedef, x)) for x in layers)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Root-mean-square norm over the last axis, in fp32 (arXiv:1910.07467)."""
    x_32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x_32 * x_32, axis=-1, keepdims=True) + eps)
    return (x_32 * scale).astype(x.dtype) * weight.astype(x.dtype)
