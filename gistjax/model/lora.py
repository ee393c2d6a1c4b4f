"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) as a tree of their own beside the base.

    lora (trained, fp32)                          what a layer reads (compute dtype)
      q     a [L, D, R]    b [L, R, N·H]  ┐
      k     a [L, D, R]    b [L, R, K·H]  ├────▶  qkv      a [L, D, 3R]   b [L, 3R, K, G + 2, H]
      v     a [L, D, R]    b [L, R, K·H]  ┘
      gate, up  …                         ────▶  gate_up  a [L, D, 2R]   b [L, 2R, 2, F]
      o, down   …                         ────▶  o, down  the same

Adapters are trained and saved by projection. For each call they are put together as the base's
fused matrices are, `b` block by block, so that a layer reads its input once for all of them. One
filter, `Trainable`, tells what is trained: it drives the split for gradients, the optimizer and
what is saved. `b` starts at zero, so a fresh adapter changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from gistjax.config import LoraConfig
from gistjax.model.config import LlamaConfig

Trainable = nnx.Param


class Adapter(nnx.Module):
    """One projection's pair of factors, in fp32."""

    def __init__(self, layers: int, d_in: int, d_out: int, rank: int, key: Array):
        a = jax.random.normal(key, (layers, d_in, rank), jnp.float32) / jnp.sqrt(d_in)
        self.a = nnx.LoRAParam(a)
        self.b = nnx.LoRAParam(jnp.zeros((layers, rank, d_out), jnp.float32))


class LoRAWeights(NamedTuple):
    """The factors of what is added to a matrix, `a @ b`: of one layer, or stacked along L."""

    a: Array  # [I, R]
    b: Any  # [R, *O], the scale within


class LoRA(nnx.Module):
    """Adapters on some of the seven projections, in the first `layers` layers; by default all."""

    def __init__(self, base: LlamaConfig, lora: LoraConfig, key: Array, layers: int | None = None):
        self.scale = lora.alpha / lora.rank
        sizes = projection_sizes(base)
        self.adapters = nnx.Dict(
            {
                name: Adapter(
                    base.n_layers if layers is None else layers, *sizes[name], lora.rank, subkey
                )
                for name, subkey in zip(
                    lora.targets, jax.random.split(key, len(lora.targets)), strict=True
                )
            }
        )

    def fused(self, base: LlamaConfig, dtype: jnp.dtype) -> dict[str, LoRAWeights]:
        """The adapters by the base's matrices, stacked along L, of matrices that have any."""
        K, H = base.n_kv_heads, base.head_dim
        G = base.n_heads // K
        # Where each projection's output stands along its matrix's second last axis, of how many.
        places = {
            "qkv": {"q": (0, G + 2), "k": (G, G + 2), "v": (G + 1, G + 2)},
            "gate_up": {"gate": (0, 2), "up": (1, 2)},
        }
        fused = {}
        for matrix, members in places.items():
            blocks = []
            for name, (first, size) in members.items():
                if name in self.adapters:
                    a, b = self._factors(name, dtype)
                    heads = (K, -1, H) if matrix == "qkv" else (1, base.d_ff)
                    b = b.reshape(*b.shape[:2], *heads)
                    after = size - first - b.shape[-2]
                    pad = [(0, 0)] * (b.ndim - 2) + [(first, after), (0, 0)]
                    blocks.append(LoRAWeights(a, jnp.pad(b, pad)))
            if blocks:
                fused[matrix] = LoRAWeights(
                    jnp.concatenate([block.a for block in blocks], axis=2),
                    jnp.concatenate([block.b for block in blocks], axis=1),
                )
        singles = {
            name: self._factors(name, dtype) for name in ("o", "down") if name in self.adapters
        }
        return {**fused, **singles}

    def _factors(self, name: str, dtype: jnp.dtype) -> LoRAWeights:
        adapter = self.adapters[name]
        return LoRAWeights(
            adapter.a[...].astype(dtype), (self.scale * adapter.b[...]).astype(dtype)
        )


def frozen(lora: LoRA | None) -> LoRA | None:
    """Return an adapter that gets no gradient."""
    if lora is None:
        return None
    graphdef, weights = nnx.split(lora)
    return nnx.merge(graphdef, jax.lax.stop_gradient(weights))


def lora_dot(
    x_BxTxI: Array, w: Array, factors: LoRAWeights | None, gathered: NamedSharding | None = None
) -> Array:
    """`x @ w + (x @ a) @ b` for a frozen w `[I, *O]`: `[B, T, *O]` in x's dtype.

    A weight that is stored in another dtype is cast for the product and once more for its gradient,
    not kept between.

    Args:
        gathered: how w is laid out in the product where each device keeps but a part of it. It is
            gathered as often as it is cast (Rajbhandari et al. 2020, arXiv:1910.02054).
    """
    if factors is None and gathered is None and w.dtype == x_BxTxI.dtype:
        return jnp.tensordot(x_BxTxI, w, axes=1)
    return _lora_dot(x_BxTxI, w, factors, gathered)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _lora_dot(
    x: Array, w: Array, factors: LoRAWeights | None, gathered: NamedSharding | None
) -> Array:
    return _forward(x, w, factors, gathered)[0]


def _forward(
    x: Array, w: Array, factors: LoRAWeights | None, gathered: NamedSharding | None
) -> tuple[Array, tuple[Any, ...]]:
    if factors is None:
        return jnp.tensordot(x, _used(w, gathered, x.dtype), axes=1), (None, w, None, None)
    a, b = factors
    z_BxTxR = x @ a
    if gathered is None and _extends(x, w):
        extended = jnp.concatenate([w.astype(b.dtype), b])
        y = jnp.tensordot(jnp.concatenate([x, z_BxTxR], axis=-1), extended, axes=1)
        return y, (x, extended, LoRAWeights(a, None), z_BxTxR)
    y = jnp.tensordot(x, _used(w, gathered, x.dtype), axes=1) + jnp.tensordot(z_BxTxR, b, axes=1)
    return y, (x, w, factors, z_BxTxR)


def _backward(
    gathered: NamedSharding | None, residuals: tuple[Any, ...], dy: Array
) -> tuple[Array, None, LoRAWeights | None]:
    """No gradient of w is formed."""
    x, w, factors, z_BxTxR = residuals
    outputs, weight_axes, rows = tuple(range(2, dy.ndim)), tuple(range(1, w.ndim)), (0, 1)
    if gathered is not None:
        w = jax.lax.optimization_barrier(w)  # else it would be the forward pass's, kept
    dx = jnp.tensordot(dy, _used(w, gathered, dy.dtype), (outputs, weight_axes))
    if factors is None:
        return dx, None, None
    a, b = factors
    if b is None:  # w is [w; b]
        dx, dz_BxTxR = jnp.split(dx, [x.shape[-1]], axis=-1)
    else:
        dz_BxTxR = jnp.tensordot(dy, b, (outputs, weight_axes))
    da = jnp.tensordot(x, dz_BxTxR, (rows, rows))
    return dx + dz_BxTxR @ a.T, None, LoRAWeights(da, jnp.tensordot(z_BxTxR, dy, (rows, rows)))


def _used(w: Array, gathered: NamedSharding | None, dtype: jnp.dtype) -> Array:
    """The weight as it stands in a product."""
    w = w if gathered is None else jax.lax.with_sharding_constraint(w, gathered)
    return w.astype(dtype)


def _extends(x: Array, w: Array) -> bool:
    """True if `[x, x @ a] @ [w; b]`, one product, beats the sum of two.

    It copies w, and saves passes over the output: worth it where the rows outnumber w's.
    """
    return x.shape[0] * x.shape[1] >= EXTEND_FROM * w.shape[0]


EXTEND_FROM = 2
"""Rows of x for each row of w."""

_lora_dot.defvjp(_forward, _backward)


def projection_sizes(base: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of each projection."""
    D, F = base.d_model, base.d_ff
    NH, KH = base.n_heads * base.head_dim, base.n_kv_heads * base.head_dim
    return {
        "q": (D, NH),
        "k": (D, KH),
        "v": (D, KH),
        "o": (NH, D),
        "gate": (D, F),
        "up": (D, F),
        "down": (F, D),
    }
