"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) as a tree of their own beside the base.

    base.layers            lora
      q    [L, D, N·H]       q:    a [L, D, R]    b [L, R, N·H]
      ...                    ...
      down [L, F, D]         down: a [L, F, R]    b [L, R, D]
      Frozen                 nnx.LoRAParam, which is an nnx.Param

Both are stacked along the layers and scanned together. One filter, `Trainable`, tells what is trained: it drives the
split for gradients, the optimizer and what is saved. `b` starts at zero, so a fresh adapter changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from gistjax.config import LoraConfig

if TYPE_CHECKING:
    from gistjax.model.llama import LlamaConfig

Trainable = nnx.Param


class Adapter(nnx.Module):
    """One projection's pair of factors, in fp32."""

    def __init__(self, layers: int, d_in: int, d_out: int, rank: int, key: Array):
        a = jax.random.normal(key, (layers, d_in, rank), jnp.float32) / jnp.sqrt(d_in)
        self.a = nnx.LoRAParam(a)
        self.b = nnx.LoRAParam(jnp.zeros((layers, rank, d_out), jnp.float32))


class LoRA(nnx.Module):
    """Adapters on some of the base's seven projections."""

    def __init__(self, base: LlamaConfig, lora: LoraConfig, key: Array):
        self.scale = lora.alpha / lora.rank
        sizes = projection_sizes(base)
        self.adapters = nnx.Dict(
            {
                name: Adapter(base.n_layers, *sizes[name], lora.rank, subkey)
                for name, subkey in zip(
                    lora.targets, jax.random.split(key, len(lora.targets)), strict=True
                )
            }
        )

    def add_to(self, y_BxTxO: Array, name: str, x_BxTxI: Array) -> Array:
        """`y + scale · x a b` for one layer's adapter of this name, or `y` where there is none."""
        if name not in self.adapters:
            return y_BxTxO
        adapter = self.adapters[name]
        dtype = x_BxTxI.dtype
        z_BxTxR = x_BxTxI @ adapter.a[...].astype(dtype)
        return y_BxTxO + (z_BxTxR * self.scale) @ adapter.b[...].astype(dtype)


def projection_sizes(base: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of each projection."""
    D, F = base.d_model, base.d_ff
    NH, KH = base.n_heads * base.head_dim, base.n_kv_heads * base.head_dim
    return {
        "q": (D, NH), "k": (D, KH), "v": (D, KH), "o": (NH, D),
        "gate": (D, F), "up": (D, F), "down": (F, D),
    }  # fmt: skip
