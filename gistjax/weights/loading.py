"""From named tensors of a file to a Llama on the mesh, one stacked leaf at a time.

A reader gives the tensors of one model under their Hugging Face names and in that layout, `[out, in]`. On the host there
is never more than one stacked leaf beside what the reader holds; each goes to its devices in its own sharding.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gistjax.errors import WeightsError
from gistjax.model.llama import Llama, LlamaConfig, random_initializer
from gistjax.sharding import path_name, shardings_of

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "output": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "layers/attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers/q": "model.layers.{}.self_attn.q_proj.weight",
    "layers/k": "model.layers.{}.self_attn.k_proj.weight",
    "layers/v": "model.layers.{}.self_attn.v_proj.weight",
    "layers/o": "model.layers.{}.self_attn.o_proj.weight",
    "layers/ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/down": "model.layers.{}.mlp.down_proj.weight",
}
"""Leaf of `Llama` to Hugging Face name; `{}` is the layer."""


class Reader(Protocol):
    """Tensors by Hugging Face name."""

    def tensor(self, name: str) -> np.ndarray:
        """One tensor, in the layout of Hugging Face files.

        Raises:
            WeightsError: if it is not there or cannot be read.
        """


def abstract_llama(config: LlamaConfig, dtype: jnp.dtype) -> Llama:
    """The base as shapes and dtypes."""
    return nnx.eval_shape(lambda: Llama(config, random_initializer(jax.random.key(0), dtype)))


def load_llama(reader: Reader, config: LlamaConfig, dtype: jnp.dtype, mesh: Mesh) -> Llama:
    """Reads every weight into its place on the mesh.

    Raises:
        WeightsError: naming the tensor that is missing, damaged or of another shape.
    """
    graphdef, shapes = nnx.split(abstract_llama(config, dtype))
    shardings = shardings_of(shapes, mesh, "base/")

    def load(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        host = _stacked(reader, NAMES[path_name(path)], leaf.shape, leaf.dtype)
        return jax.block_until_ready(jax.device_put(host, sharding))

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(load, shapes, shardings))


def _stacked(reader: Reader, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A leaf in its final layout: layers stacked, matrices as `[in, out]`, the vocabulary's as `[V, D]`."""
    if "{}" not in name:
        return _fitting(reader.tensor(name), name, shape).astype(dtype)
    stack = np.empty(shape, dtype)
    for layer in range(shape[0]):
        one = name.format(layer)
        stack[layer] = _fitting(reader.tensor(one), one, shape[:0:-1]).T
    return stack


def _fitting(array: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise WeightsError(
            f"{name} has shape {array.shape}, but the model's config asks for {shape}: config and "
            "weights do not belong together."
        )
    return array


def random_llama(config: LlamaConfig, dtype: jnp.dtype, mesh: Mesh, seed: int) -> Llama:
    """Random weights, made on the devices."""
    graphdef, shapes = nnx.split(abstract_llama(config, dtype))

    def make() -> Any:
        return nnx.split(Llama(config, random_initializer(jax.random.key(seed), dtype)))[1]

    return nnx.merge(graphdef, jax.jit(make, out_shardings=shardings_of(shapes, mesh, "base/"))())
