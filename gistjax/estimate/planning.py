"""Shapes that a configuration gives a model: its parameters, its slots. No weights are touched."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.config import CompressionConfig
from gistjax.model.config import LlamaConfig
from gistjax.model.llama import Llama, random_initializer
from gistjax.runtime.sharding import path_name
from gistjax.training.step import split_model


def abstract_model(
    config: CompressionConfig, base: LlamaConfig, prefix: int = 1, scan: bool = True
) -> CompressedLM:
    """The whole model as shapes and dtypes, behind a prompt of `prefix` tokens, its layers stacked or not."""
    dtype = jnp.dtype(config.model.dtype)

    def build() -> CompressedLM:
        llama = Llama(base, random_initializer(jax.random.key(0), dtype), scan)
        return CompressedLM(llama, config, (0,) * prefix, jax.random.key(0))

    return nnx.eval_shape(build)


def parameter_counts(model: CompressedLM) -> dict[str, int]:
    """Parameters by group: the base, the compressor (head and connector), and each LoRA."""
    _, trainable, frozen = split_model(model)
    counts = {"base": _size(frozen.base), "compressor": 0, "encoder_lora": 0, "decoder_lora": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
        counts[_group(path_name(path))] += math.prod(leaf.shape)
    return {**counts, "trainable": _size(trainable)}


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _group(name: str) -> str:
    if name.startswith("compressor/encoder/lora"):
        return "encoder_lora"
    return "decoder_lora" if name.startswith("lora/") else "compressor"


def memory_positions(config: CompressionConfig, context: int) -> int:
    """Decoder positions between prefix and question, of a context padded to so many tokens."""
    slots = config.target_length
    least = min(config.ratios, default=config.ratio)
    if least:
        slots = min(math.ceil(context / least), slots)
    return {"none": context, "closed_book": 0}.get(config.architecture, slots)


def nominal_ratio(config: CompressionConfig) -> float:
    """Context length over slots, or over the tokens that a control selects, as configured; 1 where the whole context is read."""
    reads_all = config.architecture == "none" and config.data.select == "all"
    if reads_all or config.architecture == "closed_book":
        return 1.0
    return max(config.ratio, config.data.context_tokens / config.target_length)
