"""Llama (2, 3.x, SmolLM2) in Flax NNX: stacked layers under one scan, explicit masks and positions.

Shapes are suffixes of names, one letter an axis. The letters, for the whole project:

    B batch rows          T positions that ask (queries)   D model width
    C context tokens      U positions that are asked       F feed-forward width
    M slots               L layers                         V vocabulary
    P prefix tokens       N query heads                    R LoRA rank
    S question + answer   K key/value heads                X memory positions (slots or context)
    A answer tokens       G query heads per K (N = K·G)    H head width

Architecture: Touvron et al. 2023 (arXiv:2307.09288) and Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.errors import WeightsError
from gistjax.model.cache import Cache
from gistjax.model.lora import LoRA


class Frozen(nnx.Variable):
    """A weight of the base. Trainable weights are `nnx.Param`, so the two never share a tree."""


@dataclass(frozen=True)
class RopeScaling:
    """The llama3 frequency scaling (arXiv:2407.21783; `rope_type: llama3` in Hugging Face configs)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a base model."""

    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-5
    tie_embeddings: bool = False
    max_positions: int = 2048

    @classmethod
    def from_hugging_face(cls, hf: Mapping[str, Any]) -> LlamaConfig:
        """Reads a Hugging Face `config.json`.

        Raises:
            WeightsError: where the file asks for something that this model does not do.
        """
        _refuse_unsupported(hf)
        # transformers 5 groups RoPE under rope_parameters; earlier files spread it over two keys.
        rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
        n_heads = hf["num_attention_heads"]
        return cls(
            vocab_size=hf["vocab_size"],
            d_model=hf["hidden_size"],
            d_ff=hf["intermediate_size"],
            n_layers=hf["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=hf.get("num_key_value_heads") or n_heads,
            head_dim=hf.get("head_dim") or hf["hidden_size"] // n_heads,
            rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0),
            rope_scaling=_rope_scaling(rope),
            rms_eps=float(hf.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
            max_positions=hf.get("max_position_embeddings", 2048),
        )


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    if rope.get("rope_type", rope.get("type", "default")) != "llama3":
        return None
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_positions=int(rope["original_max_position_embeddings"]),
    )


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads")  # fmt: skip
    missing = [key for key in required if not isinstance(hf.get(key), int)]
    heads, kv_heads = hf.get("num_attention_heads", 1), hf.get("num_key_value_heads")
    reasons = {
        f"the model type is {hf.get('model_type')!r}": hf.get("model_type", "llama") != "llama",
        f"its config lacks {', '.join(missing)}": bool(missing),
        f"its activation is {hf.get('hidden_act')!r}": hf.get("hidden_act", "silu") != "silu",
        "its attention projections have biases": bool(hf.get("attention_bias")),
        "its feed-forward projections have biases": bool(hf.get("mlp_bias")),
        f"its RoPE type is {rope_type!r}": rope_type not in ("default", "llama3"),
        "its RoPE turns only a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "its query heads do not divide by its key/value heads": bool(kv_heads)
        and heads % kv_heads != 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise WeightsError(
                f"cannot load this base: {reason}. gistjax runs Llama 2, Llama 3.x and SmolLM2 "
                "(silu, no biases, RoPE 'default' or 'llama3')."
            )


Initializer = Callable[[tuple[int, ...], float], Array]
"""Makes one weight: shape and standard deviation (0 stands for ones) to array."""


def random_initializer(key: Array, dtype: jnp.dtype) -> Initializer:
    """Normal weights, ones for norms; a fresh key for each weight."""
    keys = iter(jax.random.split(key, 16))

    def make(shape: tuple[int, ...], std: float) -> Array:
        if std == 0.0:
            return jnp.ones(shape, dtype)
        return (std * jax.random.normal(next(keys), shape, jnp.float32)).astype(dtype)

    return make


class Layers(nnx.Module):
    """All layers' weights, each stacked along a leading axis L; also one layer, once sliced."""

    def __init__(self, config: LlamaConfig, make: Initializer):
        L, D, F = config.n_layers, config.d_model, config.d_ff
        NH, KH = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        std = 0.02
        out_std = std / math.sqrt(2 * L)
        self.config = config
        self.attention_norm = Frozen(make((L, D), 0.0))
        self.q = Frozen(make((L, D, NH), std))
        self.k = Frozen(make((L, D, KH), std))
        self.v = Frozen(make((L, D, KH), std))
        self.o = Frozen(make((L, NH, D), out_std))
        self.ffn_norm = Frozen(make((L, D), 0.0))
        self.gate = Frozen(make((L, D, F), std))
        self.up = Frozen(make((L, D, F), std))
        self.down = Frozen(make((L, F, D), out_std))

    def project(self, name: str, x_BxTxI: Array, lora: LoRA | None) -> Array:
        """`x @ W`, plus the adapter's part where there is one."""
        y_BxTxO = x_BxTxI @ getattr(self, name)[...]
        return y_BxTxO if lora is None else lora.add_to(y_BxTxO, name, x_BxTxI)

    def queries_keys_values(
        self, x_BxTxD: Array, rope: tuple[Array, Array], lora: LoRA | None
    ) -> tuple[Array, Array, Array]:
        """The three projections, split into heads; queries and keys are rotated."""
        h_BxTxD = rms_norm(x_BxTxD, self.attention_norm[...], self.config.rms_eps)

        def heads(name: str) -> Array:
            y = self.project(name, h_BxTxD, lora)
            return y.reshape(*y.shape[:2], -1, self.config.head_dim)

        return apply_rope(heads("q"), rope), apply_rope(heads("k"), rope), heads("v")

    def attend(
        self, x_BxTxD: Array, q_BxTxNxH: Array, k_BxUxKxH: Array, v_BxUxKxH: Array,
        mask_BxTxU: Array, lora: LoRA | None,
    ) -> Array:  # fmt: skip
        """Attention and its residual. The softmax runs in fp32."""
        y_BxTxNxH = jax.nn.dot_product_attention(
            q_BxTxNxH, k_BxUxKxH, v_BxUxKxH, mask=mask_BxTxU[:, None], implementation="xla"
        )
        return x_BxTxD + self.project("o", y_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1), lora)

    def feed_forward(self, x_BxTxD: Array, lora: LoRA | None) -> Array:
        """SwiGLU and its residual."""
        h_BxTxD = rms_norm(x_BxTxD, self.ffn_norm[...], self.config.rms_eps)
        gate_BxTxF = jax.nn.silu(self.project("gate", h_BxTxD, lora))
        up_BxTxF = self.project("up", h_BxTxD, lora)
        return x_BxTxD + self.project("down", gate_BxTxF * up_BxTxF, lora)


class Llama(nnx.Module):
    """The base model. Every weight is `Frozen`; adapters are passed in beside it."""

    def __init__(self, config: LlamaConfig, make: Initializer):
        self.config = config
        V, D = config.vocab_size, config.d_model
        self.embedding = Frozen(make((V, D), 0.02))
        self.layers = Layers(config, make)
        self.final_norm = Frozen(make((D,), 0.0))
        self.output = None if config.tie_embeddings else Frozen(make((V, D), 0.02))
        self.scan_layers = True
        self.remat = False

    @property
    def dtype(self) -> jnp.dtype:
        """The weights' dtype, which is also that of all activations."""
        return self.embedding[...].dtype

    def embed(self, ids_BxT: Array) -> Array:
        """Token embeddings `[B, T, D]`."""
        return jnp.take(self.embedding[...], ids_BxT, axis=0)

    def logits(self, h_BxTxD: Array) -> Array:
        """Vocabulary scores in fp32 of states that `__call__` returned (already normed)."""
        weights_VxD = self.embedding[...] if self.output is None else self.output[...]
        return jnp.einsum("...d,vd->...v", h_BxTxD, weights_VxD, preferred_element_type=jnp.float32)

    def __call__(
        self,
        x_BxTxD: Array,
        positions_BxT: Array,
        mask_BxTxU: Array,
        lora: LoRA | None = None,
        cache: Cache | None = None,
        start: Array | int = 0,
        n_layers: int | None = None,
    ) -> tuple[Array, Cache | None]:
        """Runs the layers over embeddings.

        Args:
            x_BxTxD: inputs, in the weights' dtype.
            positions_BxT: rotary positions.
            mask_BxTxU: True where a position may look; U is T, or the cache's length.
            lora: adapters, stacked like the layers.
            cache: keys and values seen so far; this call's are written from index `start` on.
            start: index in the cache of the first of the T positions.
            n_layers: run only so many layers (without a cache).

        Returns:
            States `[B, T, D]`, after the final norm if all layers ran, and the new cache.
        """
        rope = rope_angles(self.config, positions_BxT)
        graphdef, stacked = nnx.split((self.layers, lora))
        depth = self.config.n_layers if n_layers is None else n_layers
        if depth < self.config.n_layers:
            stacked = jax.tree.map(lambda w: w[:depth], stacked)

        def body(carry: tuple[Array, Cache | None], xs: Any) -> tuple[Any, None]:
            x, cache = carry
            index, weights = xs
            layer, adapter = nnx.merge(graphdef, weights)
            q, k, v = layer.queries_keys_values(x, rope, adapter)
            if cache is not None:
                cache = cache.write(index, start, k, v)
                k, v = cache.layer(index)
            x = layer.attend(x, q, k, v, mask_BxTxU, adapter)
            return (layer.feed_forward(x, adapter), cache), None

        if self.remat:
            body = jax.checkpoint(body)
        unroll = 1 if self.scan_layers else max(depth, 1)
        (x_BxTxD, cache), _ = jax.lax.scan(
            body, (x_BxTxD, cache), (jnp.arange(depth), stacked), unroll=unroll
        )
        if depth == self.config.n_layers:
            x_BxTxD = rms_norm(x_BxTxD, self.final_norm[...], self.config.rms_eps)
        return x_BxTxD, cache


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Root-mean-square norm over the last axis, in fp32 (arXiv:1910.07467)."""
    x_32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x_32 * x_32, axis=-1, keepdims=True) + eps)
    return (x_32 * scale).astype(x.dtype) * weight


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
    """Rotates each head; its first half pairs with its second half, as in Hugging Face weights."""
    cos, sin = rope
    first, second = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxNxH.dtype)
