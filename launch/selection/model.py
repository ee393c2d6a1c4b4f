"""The frozen base in plain JAX: weights, adapters, and the two halves of a layer.

Shapes, here and in the files beside: L layers, B contexts, T context positions (prompt before the
context included), K KV heads, G query heads a KV head, H head size, D width, M tokens of all
questions of a context in one row, Q questions, R ratios, A answer tokens to predict.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NORMS = ("ln1", "ln2")
MATRICES = ("q", "k", "v", "o", "g", "u", "d")
"""Those that an adapter changes; g, u and d are gate, up and down."""

SCALE = 2.0
"""Alpha / rank of the adapters."""

Layers = dict[str, jax.Array]
Leaves = dict[str, Any]


class Shape(NamedTuple):
    """What the arrays of a base do not tell, as far as programs depend on it."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float


class Prompt(NamedTuple):
    """Token ids of the parts that are the same for every context."""

    prefix: tuple[int, ...]  # before the context; always kept, not counted
    repeat: tuple[int, ...]  # asks the model to repeat the context, for KVzip
    end: int  # ends an answer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Base:
    """A frozen model. Matrices are `[L, in, out]`, norms `[L, D]`; all in the compute dtype."""

    layers: Layers
    embedding_VxD: jax.Array
    norm_D: jax.Array
    shape: Shape = field(metadata={"static": True})
    prompt: Prompt = field(metadata={"static": True})

    @property
    def dtype(self) -> Any:
        return self.embedding_VxD.dtype


def read_prompt(data: Path) -> Prompt:
    """Return the prompt that the data were tokenised with."""
    meta = json.loads((data / "meta.json").read_text())
    return Prompt(tuple(meta["pre"]), tuple(meta["rep"]), meta["eot"])


def load_base(data: Path) -> Base:
    """Return the base that `launch.selection.prepare` wrote, in bf16."""
    with np.load(data / "base.npz") as file:
        L, N, K, eps, theta = file["conf"].tolist()
        w = {k: jnp.array(file[k].view(jnp.bfloat16)) for k in file.files if k != "conf"}
    shape = Shape(int(L), int(N), int(K), w["emb"].shape[1] // int(N), eps, theta)
    return _base(w, shape, read_prompt(data))


def random_base(data: Path) -> Base:
    """Return a random fp32 base of two layers with SmolLM2's vocabulary, for rehearsals."""
    rng, D, F, L = np.random.default_rng(0), 64, 96, 2

    def matrix(*shape: int) -> jax.Array:
        return jnp.array(rng.normal(size=shape) * 0.05, jnp.float32)

    w = {"emb": matrix(49152, D), "norm": jnp.ones(D)}
    w |= {name: jnp.ones((L, D)) for name in NORMS}
    sizes = {"q": (D, D), "k": (D, D // 2), "v": (D, D // 2), "o": (D, D)}
    sizes |= {"g": (D, F), "u": (D, F), "d": (F, D)}
    w |= {name: matrix(L, *size) for name, size in sizes.items()}
    return _base(w, Shape(L, 4, 2, D // 4, 1e-5, 1e5), read_prompt(data))


def _base(w: Layers, shape: Shape, prompt: Prompt) -> Base:
    return Base({k: w[k] for k in (*NORMS, *MATRICES)}, w["emb"], w["norm"], shape, prompt)


def merge(base: Base, adapter: dict[str, Layers]) -> Layers:
    """Return the layers with an adapter added to their matrices.

    The sum is rounded to the compute dtype once, and q, k, v and gate, up come side by side: few
    kernels run, and a gradient reaches the adapter alone.
    """

    def matrix(name: str) -> jax.Array:
        change = jnp.einsum("lir,lro->lio", adapter[name]["a"], adapter[name]["b"])
        return (base.layers[name].astype(jnp.float32) + SCALE * change).astype(base.dtype)

    w = {name: matrix(name) for name in MATRICES}
    return {
        "ln1": base.layers["ln1"],
        "ln2": base.layers["ln2"],
        "qkv": jnp.concatenate([w["q"], w["k"], w["v"]], 2),
        "o": w["o"],
        "gu": jnp.concatenate([w["g"], w["u"]], 2),
        "d": w["d"],
    }


def encoder_and_decoder(base: Base, leaves: Leaves) -> tuple[Layers, Layers]:
    """Return the layers that read contexts and those that answer; without `dec` they are one."""
    encoder = merge(base, leaves["enc"])
    return encoder, merge(base, leaves["dec"]) if "dec" in leaves else encoder


def rms_norm(x: jax.Array, weight_D: jax.Array, shape: Shape) -> jax.Array:
    """Return x over its root mean square, computed in fp32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + shape.eps)
    return y.astype(x.dtype) * weight_D


Angles = tuple[jax.Array, jax.Array]


def rope_angles(position_BxT: jax.Array, shape: Shape) -> Angles:
    """Return cosines and sines `[B, T, 1, H]` of the rotation at each position."""
    H = shape.head_dim
    position_BxT = position_BxT.astype(jnp.float32)
    angle = position_BxT[..., None] * shape.rope_theta ** (-jnp.arange(0, H, 2) / H)
    angle = jnp.concatenate([angle, angle], -1)
    return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rotate(x_BxTxNxH: jax.Array, angles: Angles) -> jax.Array:
    """Return queries or keys turned to their positions."""
    y = x_BxTxNxH.astype(jnp.float32)
    half = y.shape[-1] // 2
    turned = jnp.concatenate([-y[..., half:], y[..., :half]], -1)
    return (y * angles[0] + turned * angles[1]).astype(x_BxTxNxH.dtype)


class Projected(NamedTuple):
    """What a layer's attention reads."""

    normed_BxTxD: jax.Array  # the layer's normed input
    query_BxTxKxGxH: jax.Array
    unrotated_BxTxKxH: jax.Array  # keys before rotation
    key_BxTxKxH: jax.Array
    value_BxTxKxH: jax.Array


def project(layer: Layers, x_BxTxD: jax.Array, angles: Angles, shape: Shape) -> Projected:
    """Return the first half of a layer: queries, keys and values."""
    normed = rms_norm(x_BxTxD, layer["ln1"], shape)
    B, T, D = x_BxTxD.shape
    K, H = shape.n_kv_heads, shape.head_dim
    parts = jnp.split(normed @ layer["qkv"], [D, D + K * H], -1)
    query, key, value = (part.reshape(B, T, -1, H) for part in parts)
    query = rotate(query, angles).reshape(B, T, K, -1, H)
    return Projected(normed, query, key, rotate(key, angles), value)


def finish(layer: Layers, x_BxTxD: jax.Array, attended: jax.Array, shape: Shape) -> jax.Array:
    """Return the second half of a layer: output projection and feed-forward, both residual."""
    x = x_BxTxD + attended.reshape(x_BxTxD.shape) @ layer["o"]
    gate, up = jnp.split(rms_norm(x, layer["ln2"], shape) @ layer["gu"], 2, -1)
    return x + (jax.nn.silu(gate) * up) @ layer["d"]
