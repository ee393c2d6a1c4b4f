"""The train step: one pure, compiled function of trainable state, frozen base and a batch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.data.example import Batch
from gistjax.runtime.sharding import all_gather, path_name, put, replicated, shardings_of
from gistjax.training.losses import LossSettings, Whole, total_loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Health:
    """Counts of bad steps, as scalars. A bad step changes neither parameters nor optimizer."""

    bad_steps: Any  # int32
    bad_in_a_row: Any  # int32, up to now
    last_bad_step: Any  # int32, 0 for none
    mean_loss: Any  # fp32, exponential mean over the good steps; 0 before the first


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes and a checkpoint holds (or, leaf by leaf, its shardings)."""

    step: Any  # optimizer steps done, int32
    trainable: Any
    opt_state: Any
    health: Health


def no_bad_step() -> Health:
    """The health of a run that begins."""
    return Health(*(jnp.zeros((), dtype) for dtype in (jnp.int32,) * 3 + (jnp.float32,)))


def init_state(trainable: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A state at step 0, its optimizer moments laid out like their parameters."""
    state = TrainState(
        jnp.zeros((), jnp.int32),
        trainable,
        jax.eval_shape(optimizer.init, trainable),
        no_bad_step(),
    )
    shardings = state_shardings(state, mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(trainable)
    placed: TrainState = put(dataclasses.replace(state, opt_state=opt_state), shardings)
    return placed


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Shardings of a state: Adam's moments lie like their parameters, counters are replicated."""
    parameters = shardings_of(state.trainable, mesh)
    by_name = {
        path_name(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(parameters)
    }

    def of_optimizer(path: tuple[Any, ...], _: Any) -> NamedSharding:
        moment = re.fullmatch(r".*/(?:mu|nu)/(.+)", path_name(path))
        return by_name[moment[1]] if moment else replicated(mesh)

    return TrainState(
        replicated(mesh),
        parameters,
        jax.tree_util.tree_map_with_path(of_optimizer, state.opt_state),
        jax.tree.map(lambda _: replicated(mesh), state.health),
    )


MEAN_DECAY = 0.98
"""Decay of the mean loss that a spike is measured against: about the last 50 steps."""

TrainStep = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


def make_train_step(
    graphdef: nnx.GraphDef[CompressedLM],
    optimizer: optax.GradientTransformation,
    settings: LossSettings,
    shardings: TrainState,
    spike_factor: float = 0.0,
) -> TrainStep:
    """Compile `(state, frozen, batch [K, B, …]) → (state, metrics)`; the state is donated.

    The K micro-batches are accumulated before the one update. Gradients are formed for trainable
    leaves only. A step whose loss or gradient is not finite, or whose loss is more than
    `spike_factor` (0: any) times the recent mean, is bad: it leaves parameters and optimizer as
    they were.
    """

    def loss_fn(
        trainable: Any, frozen: Any, batch: Batch, whole: Whole
    ) -> tuple[Array, dict[str, Array]]:
        trainable = all_gather(trainable, shardings.trainable)
        loss, losses = total_loss(nnx.merge(graphdef, trainable, frozen), batch, settings, whole)
        return loss, {"loss": loss, **losses}

    def train_step(
        state: TrainState, frozen: Any, batches: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        whole = Whole.of(batches)

        def gradients(batch: Batch) -> tuple[Any, dict[str, Array]]:
            grads, metrics = jax.grad(loss_fn, has_aux=True)(state.trainable, frozen, batch, whole)
            return grads, metrics

        if batches.tokens_BxS.shape[0] == 1:
            grads, metrics = gradients(jax.tree.map(lambda x: x[0], batches))
        else:
            grads, metrics = _sum_over_micro_batches(gradients, state.trainable, batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        step = state.step + 1
        bad = _is_bad(metrics["loss"], metrics["grad_norm"], state.health, spike_factor)
        trainable, opt_state = jax.tree.map(
            lambda old, new: jnp.where(bad, old, new),
            (state.trainable, state.opt_state),
            (trainable, opt_state),
        )
        health = _next_health(state.health, bad, metrics["loss"], step)
        return TrainState(step, trainable, opt_state, health), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def _is_bad(loss: Array, grad_norm: Array, health: Health, spike_factor: float) -> Array:
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    if spike_factor:
        bad |= (health.mean_loss > 0) & (loss > spike_factor * health.mean_loss)
    return bad


def _next_health(health: Health, bad: Array, loss: Array, step: Array) -> Health:
    mean = jnp.where(health.mean_loss > 0, health.mean_loss, loss)
    return Health(
        bad_steps=health.bad_steps + bad,
        bad_in_a_row=jnp.where(bad, health.bad_in_a_row + 1, 0),
        last_bad_step=jnp.where(bad, step, health.last_bad_step),
        mean_loss=jnp.where(bad, health.mean_loss, MEAN_DECAY * mean + (1 - MEAN_DECAY) * loss),
    )


def _sum_over_micro_batches(
    gradients: Callable[[Batch], tuple[Any, dict[str, Array]]], trainable: Any, batches: Batch
) -> tuple[Any, dict[str, Array]]:
    def add(total: Any, batch: Batch) -> tuple[Any, dict[str, Array]]:
        grads, metrics = gradients(batch)
        return jax.tree.map(jnp.add, total, grads), metrics

    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, trainable), batches)
    return total, jax.tree.map(lambda x_K: jnp.sum(x_K, axis=0), metrics)
