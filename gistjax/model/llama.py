"""Llama (2, 3.x, SmolLM2) in Flax NNX: stacked layers under one scan, explicit masks and positions.

Shapes are suffixes of names, one letter an axis. The letters, for the whole project:

    B batch rows          T positions that ask (queries)   D model width
    C context tokens      U positions that are asked       F feed-forward width
    M slots               L layers                         V vocabulary
    P prefix tokens       N query heads                    R LoRA rank
    S question + answer   K key/value heads                X memory positions (slots or context)
    A answer tokens       G query heads per K (N = K·G)    H head width
    I, O width in, out    J heads of a K: G, key, value     W positions wanted
    E contexts of a batch (B = E·Q, Q questions on each)

Architecture: Touvron et al. 2023 (arXiv:2307.09288) and Grattafiori et al. 2024 (arXiv:2407.21783).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from gistjax.errors import WeightsError
from gistjax.model.attention import attention
from gistjax.model.cache import Cache, CacheLayer
from gistjax.model.lora import Factors, LoRA, adapted_product
from gistjax.sharding import by_rows, whole


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
        _refuse_malformed(hf)
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


LARGEST = {"num_hidden_layers": 1024, "num_attention_heads": 4096, "num_key_value_heads": 4096}
"""Beyond these, and 2^24 for other sizes, a file is damaged or hostile: no model is larger."""


def _refuse_malformed(hf: Mapping[str, Any]) -> None:
    """What is there has its type, and sizes are sizes."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
    for key in sizes:
        size = hf.get(key)
        if size is not None and not (type(size) is int and 1 <= size <= LARGEST.get(key, 2**24)):
            raise WeightsError(f"{key} is {size!r}: fetch the file again.")
    for key in ("rope_scaling", "rope_parameters"):
        rope = hf.get(key) or {}
        numbers = ("rope_theta", "partial_rotary_factor", *ROPE_NUMBERS)
        if not isinstance(rope, Mapping) or not all(
            _is_number(rope.get(name, 1)) for name in numbers
        ):
            raise WeightsError(f"{key} is {rope!r}: fetch the file again.")
        if rope.get("rope_type", rope.get("type")) == "llama3" and not rope.keys() >= {
            *ROPE_NUMBERS
        }:
            raise WeightsError(
                f"{key} lacks some of {', '.join(ROPE_NUMBERS)}: fetch the file again."
            )
    for key in ("rope_theta", "rms_norm_eps"):
        if not _is_number(hf.get(key) or 1):
            raise WeightsError(f"{key} is {hf[key]!r}: fetch the file again.")


ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


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


class Layer(nnx.Module):
    """The weights of one layer, or of all of them stacked along a leading axis L.

    What reads the same input is one matrix: `qkv` holds for each key/value head its G query heads, its key and its
    value head, `gate_up` both halves of the feed-forward. The axis that tensor parallelism splits stays an axis.
    """

    def __init__(self, config: LlamaConfig, make: Initializer, lead: tuple[int, ...] = ()):
        D, F, K, H = config.d_model, config.d_ff, config.n_kv_heads, config.head_dim
        NH, KH = config.n_heads * H, K * H
        std = 0.02
        out_std = std / math.sqrt(2 * config.n_layers)
        self.attention_norm = Frozen(make((*lead, D), 0.0))
        q, k, v = (make((*lead, D, width), std) for width in (NH, KH, KH))
        self.qkv = Frozen(fuse_qkv(q, k, v, K))  # [D, K, G + 2, H]
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
    """What all layers share in one call."""

    config: LlamaConfig
    rope: tuple[Array, Array]
    mask_BxAxU: Array | None
    kernel: str  # of causal attention: xla | cudnn
    mesh: Mesh | None


Adapters = dict[str, Factors]


def run_layer(
    layer: Layer, adapters: Adapters, x_BxTxD: Array, inputs: Inputs, cache: CacheLayer | None,
    wanted_BxW: Array | None = None,
) -> tuple[Array, CacheLayer | None]:  # fmt: skip
    """Attention and feed-forward with their residuals; the cache, if there is one, gets the new keys and values.

    With `wanted`, only those positions ask and are returned, `[B, W, D]`; all of them are asked.
    """
    config = inputs.config

    def project(name: str, h_BxTxI: Array) -> Array:
        w = getattr(layer, name)[...]
        layout = whole(f"base/layers/{name}", w.shape, inputs.mesh)
        return adapted_product(h_BxTxI, w, adapters.get(name), layout)

    x_BxTxD = by_rows(x_BxTxD, inputs.mesh)
    h_BxTxD = rms_norm(x_BxTxD, layer.attention_norm[...], config.rms_eps)
    qkv_BxTxKxJxH = project("qkv", h_BxTxD)
    cos, sin = inputs.rope
    rope_KxG = (cos[..., None, :], sin[..., None, :])
    # Splitting, unlike slicing, has a gradient that is put together in one pass.
    G = qkv_BxTxKxJxH.shape[3] - 2
    q_BxTxKxGxH, k_BxTxKx1xH, v_BxTxKx1xH = jnp.split(qkv_BxTxKxJxH, [G, G + 1], axis=3)
    q_BxTxKxGxH = apply_rope(q_BxTxKxGxH, rope_KxG)
    k_BxTxKxH, v_BxTxKxH = apply_rope(k_BxTxKx1xH, rope_KxG)[:, :, :, 0], v_BxTxKx1xH[:, :, :, 0]
    q_BxTxNxH = q_BxTxKxGxH.reshape(*x_BxTxD.shape[:2], -1, config.head_dim)
    if cache is not None:
        cache = cache.write(k_BxTxKxH, v_BxTxKxH)
    mask_BxAxU, seen = inputs.mask_BxAxU, cache
    if wanted_BxW is not None:
        if mask_BxAxU is None:
            seen, mask_BxAxU = None, jnp.arange(x_BxTxD.shape[1]) <= wanted_BxW[:, :, None]
        else:
            mask_BxAxU = take_positions(mask_BxAxU, wanted_BxW)
        x_BxTxD, q_BxTxNxH = (take_positions(a, wanted_BxW) for a in (x_BxTxD, q_BxTxNxH))
    y_BxTxNxH = attention(q_BxTxNxH, k_BxTxKxH, v_BxTxKxH, seen, mask_BxAxU, inputs.kernel)
    x_BxTxD = x_BxTxD + project("o", y_BxTxNxH.reshape(*x_BxTxD.shape[:2], -1))
    gate_up_BxTx2xF = project("gate_up", rms_norm(x_BxTxD, layer.ffn_norm[...], config.rms_eps))
    gate_BxTx1xF, up_BxTx1xF = jnp.split(gate_up_BxTx2xF, 2, axis=2)
    h_BxTxF = (jax.nn.silu(gate_BxTx1xF) * up_BxTx1xF)[:, :, 0]
    return x_BxTxD + project("down", h_BxTxF), cache


def take_positions(x_BxT: Array, index_BxW: Array) -> Array:
    """Some positions of each row of `[B, T, …]`: `[B, W, …]`."""
    index = index_BxW.reshape(*index_BxW.shape, *(1 for _ in x_BxT.shape[2:]))
    return jnp.take_along_axis(x_BxT, index, axis=1)


class Llama(nnx.Module):
    """The base model. Every weight is `Frozen`; adapters are passed in beside it.

    Args:
        config: sizes.
        make: fills the weights.
        scan: keep the layers stacked and scan over them: compiles fast, runs slower, because every step copies each
            layer out of the stack. Otherwise each layer is a set of arrays of its own and the program is unrolled.
    """

    def __init__(self, config: LlamaConfig, make: Initializer, scan: bool = True):
        self.config = config
        V, D = config.vocab_size, config.d_model
        self.embedding = Frozen(make((V, D), 0.02))
        stacked = Layer(config, make, (config.n_layers,))
        self.layers = stacked if scan else unstack(stacked)
        self.final_norm = Frozen(make((D,), 0.0))
        self.output = None if config.tie_embeddings else Frozen(make((V, D), 0.02))
        self.remat = False
        self.kernel = "xla"  # of causal attention: xla | cudnn
        self.mesh: Mesh | None = None  # that the weights are spread over

    @property
    def dtype(self) -> jnp.dtype:
        """The weights' dtype, which is also that of all activations."""
        return self.embedding[...].dtype

    def embed(self, ids_BxT: Array) -> Array:
        """Token embeddings `[B, T, D]`."""
        return by_rows(jnp.take(self.embedding[...], ids_BxT, axis=0), self.mesh)

    def logits(self, h_BxTxD: Array) -> Array:
        """Vocabulary scores in fp32 of states that `__call__` returned (already normed)."""
        weights_VxD = self.embedding[...] if self.output is None else self.output[...]
        return _vocabulary_scores(h_BxTxD, weights_VxD)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """A cache for `length` positions, stacked like the layers."""
        c = self.config
        scan = isinstance(self.layers, Layer)
        return Cache.empty(
            c.n_layers, batch, length, c.n_kv_heads, c.head_dim, self.dtype, stacked=scan
        )

    def __call__(
        self,
        x_BxTxD: Array,
        positions_BxT: Array,
        mask_BxAxU: Array | None = None,
        lora: LoRA | None = None,
        cache: Cache | None = None,
        start: Array | int = 0,
        n_layers: int | None = None,
        wanted_BxW: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        """Runs the layers over embeddings.

        Args:
            x_BxTxD: inputs, in the weights' dtype.
            positions_BxT: rotary positions; one row may stand for all.
            mask_BxAxU: True where one of the last A positions may look, U being T or the cache's length. The positions
                before them look at each other causally; without a mask all do.
            lora: adapters, stacked along the layers.
            cache: keys and values seen so far; this call's are written from index `start` on.
            start: index in the cache of the first of the T positions; 0 if any of them is causal.
            n_layers: run only so many layers (without a cache).
            wanted_BxW: return the states of these positions only; the last layer spares the others' feed-forward.
                A mask must then be of all T positions, or none.

        Returns:
            States `[B, T, D]` or `[B, W, D]`, after the final norm if all layers ran, and the new cache.
        """
        depth = self.config.n_layers if n_layers is None else n_layers
        inputs = Inputs(
            self.config, rope_angles(self.config, positions_BxT), mask_BxAxU, self.kernel, self.mesh
        )
        adapters = {} if lora is None else lora.fused(self.config, x_BxTxD.dtype)
        run = self._scan if isinstance(self.layers, Layer) else self._unroll
        x_BxTxD, cache = run(x_BxTxD, inputs, adapters, cache, start, depth, wanted_BxW)
        if depth == self.config.n_layers:
            x_BxTxD = rms_norm(x_BxTxD, self.final_norm[...], self.config.rms_eps)
        return x_BxTxD, cache

    def _unroll(
        self, x_BxTxD: Array, inputs: Inputs, adapters: Adapters, cache: Cache | None,
        start: Array | int, depth: int, wanted_BxW: Array | None,
    ) -> tuple[Array, Cache | None]:  # fmt: skip
        assert isinstance(self.layers, nnx.List)

        def body(
            weights: Any,
            adapters: Adapters,
            x: Array,
            part: CacheLayer | None,
            wanted: Array | None,
        ) -> Any:
            return run_layer(nnx.merge(graphdef, weights), adapters, x, inputs, part, wanted)

        if self.remat:
            body = jax.checkpoint(body)
        parts = {name: (jnp.unstack(a), jnp.unstack(b)) for name, (a, b) in adapters.items()}
        for i, layer in enumerate(self.layers[:depth]):
            graphdef, weights = nnx.split(layer)
            own = {name: Factors(a[i], b[i]) for name, (a, b) in parts.items()}
            part = None if cache is None else cache.layer(i, start)
            wanted = wanted_BxW if i == depth - 1 else None
            x_BxTxD, part = body(weights, own, x_BxTxD, part, wanted)
            cache = cache if cache is None else cache.put(i, part)
        return x_BxTxD, cache

    def _scan(
        self, x_BxTxD: Array, inputs: Inputs, adapters: Adapters, cache: Cache | None,
        start: Array | int, depth: int, wanted_BxW: Array | None,
    ) -> tuple[Array, Cache | None]:  # fmt: skip
        graphdef, stacked = nnx.split(self.layers)
        weights = jax.tree.map(lambda w: w[:depth], (stacked, adapters))

        def body(carry: tuple[Array, Cache | None], xs: Any) -> tuple[Any, None]:
            x, cache = carry
            index, (layer, adapters) = xs
            part = None if cache is None else cache.layer(index, start)
            whole: Any = nnx.merge(graphdef, layer)
            x, part = run_layer(whole, adapters, x, inputs, part)
            return (x, cache if part is None or cache is None else cache.put(index, part)), None

        if self.remat:
            body = jax.checkpoint(body)
        (x_BxTxD, cache), _ = jax.lax.scan(body, (x_BxTxD, cache), (jnp.arange(depth), weights))
        if wanted_BxW is not None:
            x_BxTxD = take_positions(x_BxTxD, wanted_BxW)
        return x_BxTxD, cache


@jax.custom_vjp
def _vocabulary_scores(h: Array, weights_VxD: Array) -> Array:
    return jnp.einsum("...d,vd->...v", h, weights_VxD, preferred_element_type=jnp.float32)


def _scores_forward(h: Array, weights_VxD: Array) -> tuple[Array, tuple[Array, Array]]:
    return _vocabulary_scores(h, weights_VxD), (h, weights_VxD)


def _scores_backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    """In the weights' dtype: a product of fp32 and bf16 would run in fp32. The weights are frozen."""
    h, weights_VxD = residuals
    return jnp.einsum("...v,vd->...d", dy.astype(h.dtype), weights_VxD), None


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
