"""Loading of a Llama onto the mesh from named tensors, a few leaves at a time.

A reader gives the tensors of one model under their Hugging Face names and in that layout,
`[out, in]`. On the host there are never more than `READERS` leaves beside what the reader holds;
each goes to its devices in its own sharding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig
from gistjax.model.layer import fuse_qkv, random_initializer
from gistjax.model.llama import Execution, Llama
from gistjax.model.lora import projection_sizes
from gistjax.runtime.sharding import path_name, put, shardings_of

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "output": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "layers/attention_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers/o": "model.layers.{}.self_attn.o_proj.weight",
    "layers/ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "layers/down": "model.layers.{}.mlp.down_proj.weight",
}
"""Leaf of `Llama`, or part of one, to Hugging Face name; `{}` is the layer."""

READERS = 4
"""Leaves read at the same time; of the stacked ones, which are large, one and as many layers."""

FUSED = {
    "layers/qkv": ("q", "k", "v"),
    "layers/qkv_bias": ("q_bias", "k_bias", "v_bias"),
    "layers/gate_up": ("gate", "up"),
}
"""Leaves that hold several tensors."""


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes `[out, in]` of all tensors of a model, by Hugging Face name."""
    D, H, table = config.d_model, config.head_dim, (config.vocab_size, config.d_model)
    leaves: dict[str, tuple[int, ...]] = {"embedding": table, "final_norm": (D,)}
    leaves |= {"layers/attention_norm": (D,), "layers/ffn_norm": (D,)}
    for name, (d_in, d_out) in projection_sizes(config).items():
        leaves[f"layers/{name}" if name in ("o", "down") else name] = (d_out, d_in)
        if config.qkv_biases and name in ("q", "k", "v"):
            leaves[f"{name}_bias"] = (d_out,)
    if config.qk_norms:
        leaves |= {"layers/q_norm": (H,), "layers/k_norm": (H,)}
    if not config.tie_embeddings:
        leaves["output"] = table
    return {
        NAMES[leaf].format(layer): shape
        for leaf, shape in leaves.items()
        for layer in range(config.n_layers)
    }


def check_stored(
    stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse files of another model, before any tensor is read.

    Args:
        stored: shape of each tensor in the files, by name.
        expected: the same of the model.

    Raises:
        WeightsError: naming a tensor that has no place in the model, is missing, or is of another
            shape.
    """
    for name in sorted(stored.keys() | expected.keys()):
        if name not in expected:
            raise WeightsError(
                f"it has a tensor {name}, for which this model has no place. If the model is "
                "quantised, adapted or wrapped, save it plain and whole, as transformers does."
            )
        if name not in stored:
            raise WeightsError(f"it lacks the tensor {name}: is this the whole model?")
        if stored[name] != expected[name]:
            raise WeightsError(
                f"{name} has shape {stored[name]}, but the model's config asks for "
                f"{expected[name]}: config and weights do not belong together."
            )


class TensorReader(Protocol):
    """Tensors by Hugging Face name, of the shapes that the model has (`check_stored`)."""

    def tensor(self, name: str) -> np.ndarray:
        """Return one tensor, in the layout of Hugging Face files.

        Raises:
            WeightsError: if it is not there or cannot be read.
        """


def abstract_llama(
    config: LlamaConfig,
    dtype: jnp.dtype,
    scan: bool = True,
    execution: Execution | None = None,
) -> Llama:
    """Return the base as shapes and dtypes."""

    def make() -> Llama:
        return Llama(config, random_initializer(jax.random.key(0), dtype), scan, execution)

    return nnx.eval_shape(make)


def load_llama(
    reader: TensorReader,
    config: LlamaConfig,
    dtype: jnp.dtype,
    mesh: Mesh,
    scan: bool = True,
    execution: Execution | None = None,
) -> Llama:
    """Read every weight into its place on the mesh.

    Raises:
        WeightsError: naming the tensor that cannot be read or has numbers that are not finite.
    """
    graphdef, shapes = nnx.split(abstract_llama(config, dtype, scan, execution))
    shardings = shardings_of(shapes, mesh, "base/")

    def load(item: tuple[tuple[Any, ...], jax.ShapeDtypeStruct], sharding: Any) -> jax.Array:
        path, leaf = item
        array: jax.Array = put(_leaf(reader, path_name(path), leaf, config, pool), sharding)
        return array.block_until_ready()

    items, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    with ThreadPoolExecutor(READERS) as pool:
        each = map if scan else pool.map
        leaves = list(each(load, items, jax.tree.leaves(shardings)))
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))


def _leaf(
    reader: TensorReader,
    path: str,
    leaf: jax.ShapeDtypeStruct,
    config: LlamaConfig,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """Return a leaf in its final layout.

    `layers/…` is stacked, `layers/3/…` one layer's; the others stand for themselves.
    """
    name = re.sub(r"/\d+/", "/", path)
    if not name.startswith("layers/"):
        return _read(reader, NAMES[name], leaf.dtype)
    if name != path:
        return _layer(reader, name, int(path.split("/")[1]), config, leaf.dtype)
    # Read the last layer first: a file that lacks it is refused before memory for all is taken
    last = _layer(reader, name, config.n_layers - 1, config, leaf.dtype)
    stack = np.empty(leaf.shape, leaf.dtype)
    stack[-1] = last

    def fill(layer: int) -> None:
        stack[layer] = _layer(reader, name, layer, config, leaf.dtype)

    list(pool.map(fill, range(config.n_layers - 1)))
    return stack


def _layer(
    reader: TensorReader, name: str, layer: int, config: LlamaConfig, dtype: Any
) -> np.ndarray:
    """Return one layer's part of a leaf: a matrix as `[in, out]`, a vector, or several fused."""

    def matrix(part: str) -> np.ndarray:
        read = _read(reader, NAMES[part].format(layer), dtype)
        return read.T  # transposing fp32 takes three times as long

    parts = [matrix(part) for part in FUSED.get(name, (name,))]
    if name in ("layers/qkv", "layers/qkv_bias"):
        q, k, v = parts
        fused: np.ndarray = fuse_qkv(q, k, v, config.n_kv_heads)
        return fused
    return np.stack(parts, axis=-2) if len(parts) > 1 else parts[0]


def _read(reader: TensorReader, name: str, dtype: Any) -> np.ndarray:
    """Return a tensor in the model's dtype.

    Raises:
        WeightsError: if it has numbers that are not finite.
    """
    array = reader.tensor(name)
    with np.errstate(over="ignore"):
        read = array.astype(dtype)
    if not np.isfinite(read).all():
        raise WeightsError(
            f"{name} ({array.dtype}) has numbers that are infinite or none as {read.dtype}: fetch "
            "the file again, or save the model anew in a dtype that holds its numbers."
        )
    return read


def random_llama(
    config: LlamaConfig,
    dtype: jnp.dtype,
    mesh: Mesh,
    seed: int,
    scan: bool = True,
    execution: Execution | None = None,
) -> Llama:
    """Return random weights, made on the devices; the same with stacked layers and without."""
    graphdef, shapes = nnx.split(abstract_llama(config, dtype, scan, execution))

    def make() -> Any:
        return nnx.split(Llama(config, random_initializer(jax.random.key(seed), dtype), scan))[1]

    return nnx.merge(graphdef, jax.jit(make, out_shardings=shardings_of(shapes, mesh, "base/"))())
