"""What a run will need, from shapes alone: parameter counts and a memory estimate. No weights are touched."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gistjax.config import CompressionConfig
from gistjax.model.compressed_lm import CompressedLM
from gistjax.model.llama import Llama, LlamaConfig, random_initializer
from gistjax.sharding import path_name
from gistjax.training.step import split_model

GIB = 2**30


def abstract_model(config: CompressionConfig, base: LlamaConfig) -> CompressedLM:
    """The whole model as shapes and dtypes."""
    dtype = jnp.dtype(config.model.dtype)

    def build() -> CompressedLM:
        llama = Llama(base, random_initializer(jax.random.key(0), dtype), scan=True)
        return CompressedLM(llama, config, (0,), jax.random.key(0))

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


def memory_estimate(
    config: CompressionConfig, base: LlamaConfig, counts: dict[str, int]
) -> dict[str, float]:
    """GiB on each device of one train step, by part; parameters as if replicated.

    Activations are those that the backward pass keeps: inputs and outputs of every projection, in the compute dtype, and
    fp32 logits with their gradient. Measured peaks were 2 to 20 % above the total (launch/results/speed.md), and 28 % below
    it with a trained encoder. Attention weights under an explicit mask are not counted: a bidirectional encoder of 16 rows of
    512 tokens asked for more than 60 GiB (launch/results/quality.md).
    """
    size = jnp.dtype(config.model.dtype).itemsize
    rows = config.batch_size
    context = max(config.data.context_buckets)
    tokens = max(config.data.question_buckets)
    memory = memory_positions(config, context)
    questions = config.data.questions_per_context
    passes = [memory + tokens if questions == 1 else tokens * questions]
    passes *= 1 + (config.loss_weights.get("generation", 0) > 0)
    if questions > 1 and config.slot_form == "soft_tokens":
        passes.append(memory)  # read once for all of its questions
    if config.slot_form == "key_values":
        passes.append(context + (memory if config.slot_place == "behind" else 0))
    elif config.encoder.kind == "lora":
        passes.append(context)
    kept = sum(_kept_activations(base, length, config.model.remat) for length in passes)
    logits = 2 * 4 * config.data.answer_tokens * base.vocab_size * questions * len(passes)
    parts: dict[str, float] = {
        "base": counts["base"] * size,
        "trainable": counts["trainable"] * 4,
        "gradients": counts["trainable"] * 4 * (2 if config.accumulation > 1 else 1),
        "optimizer": counts["trainable"] * 8,
        "activations": rows * (kept * size + logits),
    }
    parts["total"] = sum(parts.values())
    return {name: round(value / GIB, 3) for name, value in parts.items()}


def memory_positions(config: CompressionConfig, context: int) -> int:
    """Decoder positions between prefix and question, of a context padded to so many tokens."""
    slots = config.target_length
    least = min(config.ratios, default=config.ratio)
    if least:
        slots = min(math.ceil(context / least), slots)
    return {"none": context, "closed_book": 0}.get(config.architecture, slots)


def _kept_activations(base: LlamaConfig, length: int, remat: bool) -> int:
    """Elements a row keeps for the backward pass over `length` positions; causal attention keeps no weights."""
    D, F = base.d_model, base.d_ff
    heads = (base.n_heads + 2 * base.n_kv_heads) * base.head_dim
    layer = length * (5 * D + 3 * heads + 4 * F)
    return base.n_layers * length * D + layer if remat else base.n_layers * layer


def dry_run(config: CompressionConfig, base: LlamaConfig, source: str) -> dict[str, Any]:
    """What `--dry_run` prints: counts, memory and where the weights would come from."""
    counts = parameter_counts(abstract_model(config, base))
    return {
        "base_model": config.model.name,
        "weights": source,
        "parameters": counts,
        "compressor_parameters": counts["compressor"],
        "trainable_parameters": counts["trainable"],
        "memory_estimate_gib": memory_estimate(config, base, counts),
        "nominal_compression_ratio": nominal_ratio(config),
        "rows_per_step": config.batch_size * config.accumulation,
    }


def nominal_ratio(config: CompressionConfig) -> float:
    """Configured context length over slots; 1 where nothing is compressed."""
    if config.architecture in ("none", "closed_book"):
        return 1.0
    if config.ratio:
        return config.ratio
    return config.data.context_tokens / config.target_length
