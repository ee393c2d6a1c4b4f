"""What a run will need, from shapes alone: parameter counts and a memory estimate. No weights are touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.config import TEXT_LOSSES, CompressionConfig
from gistjax.data.example import Batch, Targets
from gistjax.data.prompts import make_prompt
from gistjax.estimate.footprint import peak_bytes
from gistjax.model.attention import choose_kernel
from gistjax.model.config import LlamaConfig
from gistjax.model.llama import Llama, random_initializer
from gistjax.runtime.devices import is_deterministic
from gistjax.runtime.sharding import one_device, path_name
from gistjax.training.losses import LossSettings
from gistjax.training.optimizer import make_optimizer
from gistjax.training.step import (
    TrainState,
    TrainStep,
    make_train_step,
    no_bad_step,
    split_model,
    state_shardings,
)
from gistjax.training.targets import TEACHER_TOKENS
from gistjax.weights.registry import Source
from gistjax.weights.tokenizers import load_tokenizer

GIB = 2**30
PREFIX_TOKENS = 44
"""Of a prompt before its context, where no tokenizer is at hand: Llama 3.1's."""


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


@dataclass(frozen=True)
class TrainProgram:
    """One train step as a device sees it, in the largest shapes that a config can meet: a jitted function and the shapes
    of its arguments, parameters as if replicated.
    """

    step: TrainStep
    state: TrainState
    frozen: Any
    batch: Batch

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `step` is called with."""
        return self.state, self.frozen, self.batch


def prefix_tokens(source: Source) -> int:
    """Of the prompt before the context: by the model's tokenizer if it is at hand."""
    if source.path is None:
        return PREFIX_TOKENS
    return len(make_prompt(load_tokenizer(source)).prefix_ids)


def train_program(
    config: CompressionConfig, base: LlamaConfig, prefix: int, kernel: str, mesh: Mesh | None = None
) -> TrainProgram:
    """The step that `gistjax.train` would run.

    Args:
        prefix: tokens of the prompt before the context.
        kernel: of causal attention, as in `gistjax.model.attention`.
        mesh: of the one device; by default the first of this machine.
    """
    model = abstract_model(config, base, prefix, config.model.scan_layers)
    model.base.kernel, model.base.remat = kernel, config.model.remat
    graphdef, trainable, frozen = split_model(model)
    optimizer = make_optimizer(config.optimizer, 1000, trainable)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        trainable,
        jax.eval_shape(optimizer.init, trainable),
        jax.eval_shape(no_bad_step),
    )
    settings = LossSettings(config.loss_weights, _answer_tokens(config), end_id=-1)
    shardings = state_shardings(state, mesh or one_device())
    step = make_train_step(graphdef, optimizer, settings, shardings)
    return TrainProgram(step, state, frozen, _largest_batch(config, base.d_model))


def _answer_tokens(config: CompressionConfig) -> int:
    """Of the longest row, end token included; targets of text have none."""
    longest = [config.data.answer_tokens if config.data.train_examples else 0]
    longest += [config.text.target_tokens for task in TEXT_LOSSES if config.loss_weights.get(task)]
    return min(max(longest), max(config.data.question_buckets))


def _largest_batch(config: CompressionConfig, width: int) -> Batch:
    K, E = config.accumulation, config.batch_size
    B = E * config.data.questions_per_context
    C, S = max(config.data.context_buckets), max(config.data.question_buckets)

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((K, *shape), dtype)

    contrasts = config.loss_weights.get("contrastive")
    targets = None
    if config.loss_weights.get("distillation"):
        shape = (B, _answer_tokens(config), TEACHER_TOKENS)
        targets = Targets(array(*shape), array(*shape, dtype=jnp.float32))
    return Batch(
        context_ids_ExC=array(E, C),
        context_length_E=array(E),
        context_id_E=array(E),
        tokens_BxS=array(B, S),
        question_length_B=array(B),
        answer_length_B=array(B),
        objective_B=array(B),
        context_view_ExD=array(E, width, dtype=jnp.float32) if contrasts else None,
        teacher=targets,
        ratio_E=array(E, dtype=jnp.float32) if config.ratios else None,
    )


def memory_estimate(
    config: CompressionConfig, base: LlamaConfig, prefix: int = PREFIX_TOKENS
) -> dict[str, float]:
    """GiB that a train step takes on each device, by part, on a GPU; parameters as if replicated.

    The step is traced in its largest shapes, and `activations` is the most that it keeps at once beside its arguments:
    what the backward pass reads again, gradients, logits (`gistjax.estimate.footprint`).
    """
    dtype = jnp.dtype(config.model.dtype)
    kernel = choose_kernel(
        config.model.attention, base.head_dim, dtype, "gpu", is_deterministic(config)
    )
    program = train_program(config, base, prefix, "traced" if kernel == "cudnn" else kernel)
    traced = program.step.trace(*program.arguments).jaxpr  # type: ignore[attr-defined]
    donated = [True] * len(jax.tree.leaves(program.state))
    parts: dict[str, float] = {
        "base": _nbytes(program.frozen),
        "trainable": _nbytes(program.state.trainable),
        "optimizer": _nbytes(program.state.opt_state),
        "activations": peak_bytes(traced, donated),
    }
    parts["total"] = sum(parts.values())
    return {name: round(value / GIB, 3) for name, value in parts.items()}


def _nbytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_positions(config: CompressionConfig, context: int) -> int:
    """Decoder positions between prefix and question, of a context padded to so many tokens."""
    slots = config.target_length
    least = min(config.ratios, default=config.ratio)
    if least:
        slots = min(math.ceil(context / least), slots)
    return {"none": context, "closed_book": 0}.get(config.architecture, slots)


def dry_run(config: CompressionConfig, source: Source) -> dict[str, Any]:
    """What `--dry_run` prints: counts, memory and where the weights would come from."""
    counts = parameter_counts(abstract_model(config, source.config))
    return {
        "base_model": config.model.name,
        "weights": source.describe(),
        "parameters": counts,
        "compressor_parameters": counts["compressor"],
        "trainable_parameters": counts["trainable"],
        "memory_estimate_gib": memory_estimate(config, source.config, prefix_tokens(source)),
        "nominal_compression_ratio": nominal_ratio(config),
        "rows_per_step": config.batch_size * config.accumulation,
    }


def nominal_ratio(config: CompressionConfig) -> float:
    """Context length over slots, or over the tokens that a control selects, as configured; 1 where the whole context is read."""
    reads_all = config.architecture == "none" and config.data.select == "all"
    if reads_all or config.architecture == "closed_book":
        return 1.0
    return max(config.ratio, config.data.context_tokens / config.target_length)
