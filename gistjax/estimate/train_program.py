"""One train step as a device sees it, in shapes: to compile, and to measure its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gistjax.compress.parameters import abstract_model, split_model
from gistjax.config import CompressionConfig
from gistjax.data.example import Batch, Targets
from gistjax.estimate.memory import answer_tokens, rows_of_context, with_question
from gistjax.model.config import LlamaConfig
from gistjax.model.llama import Execution
from gistjax.runtime.sharding import one_device
from gistjax.training.losses import LossSettings
from gistjax.training.optimizer import make_optimizer
from gistjax.training.step import (
    TrainState,
    TrainStep,
    make_train_step,
    no_bad_step,
    state_shardings,
)
from gistjax.training.targets import TEACHER_TOKENS


@dataclass(frozen=True)
class TrainProgram:
    """A jitted train step and the shapes of its arguments, parameters as if replicated.

    The shapes are the largest that the configuration can meet.
    """

    step: TrainStep
    state: TrainState
    frozen: Any
    batch: Batch

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Arguments of `step`, as shapes."""
        return self.state, self.frozen, self.batch


def train_program(
    config: CompressionConfig, base: LlamaConfig, prefix: int, kernel: str, mesh: Mesh | None = None
) -> TrainProgram:
    """Return the step that `gistjax.train` would run.

    Args:
        prefix: prompt tokens before the context.
        kernel: kernel of causal attention, as in `gistjax.model.attention`.
        mesh: mesh of one device; by default the first of this machine.
    """
    execution = Execution(config.model.compute_dtype, kernel, config.model.remat)
    model = with_question(abstract_model(config, base, config.model.scan_layers, execution))
    graphdef, trainable, frozen = split_model(model)
    optimizer = make_optimizer(config.optimizer, 1000, trainable)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        trainable,
        jax.eval_shape(optimizer.init, trainable),
        jax.eval_shape(no_bad_step),
    )
    settings = LossSettings(config.loss_weights, answer_tokens(config), end_id=-1)
    shardings = state_shardings(state, mesh or one_device())
    step = make_train_step(graphdef, optimizer, settings, shardings)
    return TrainProgram(step, state, frozen, _largest_batch(config, prefix, base.d_model))


def _largest_batch(config: CompressionConfig, prefix: int, width: int) -> Batch:
    K, E = config.accumulation, config.batch_size
    B = E * rows_of_context(config)
    C, S = max(config.data.context_buckets), max(config.data.question_buckets)

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((K, *shape), dtype)

    contrasts = config.loss_weights.get("contrastive")
    targets = None
    if config.loss_weights.get("distillation"):
        shape = (B, answer_tokens(config), TEACHER_TOKENS)
        targets = Targets(array(*shape), array(*shape, dtype=jnp.float32))
    return Batch(
        prefix_ids_P=array(prefix),
        context_ids_ExC=array(E, C),
        context_length_E=array(E),
        context_id_E=array(E),
        tokens_BxS=array(B, S),
        question_length_B=array(B),
        answer_length_B=array(B),
        objective_B=array(B),
        context_view_ExD=array(E, width, dtype=jnp.float32) if contrasts else None,
        teacher=targets,
        ratio_N=array(B if config.selects else E, dtype=jnp.float32) if config.ratios else None,
        joined_ExG=array(E, config.select.joined) if config.select.joined > 1 else None,
        bits_B=array(B) if config.rounds else None,
        kvzip_chooses_1=array(1, dtype=jnp.bool_) if config.learns_scores else None,
    )
