import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gistjax.config import (
    ARCHITECTURES,
    EncoderConfig,
    LoraConfig,
    OptimizerConfig,
    SelectConfig,
)
from gistjax.errors import ConfigError
from gistjax.model.lora import Trainable
from gistjax.runtime.sharding import path_name
from gistjax.training.optimizer import is_decayed, label_groups, make_optimizer, schedules
from tests.helpers.tiny import tiny_model

ENCODER = EncoderConfig(kind="lora", lora=LoraConfig(rank=2))


def trainable_of(name="gist", **changes):
    return nnx.split(tiny_model(name, **changes), Trainable, ...)[1]


def by_name(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", [*ARCHITECTURES, "none"])
def test_every_trainable_leaf_has_one_group(name):
    labels = by_name(label_groups(trainable_of(name, encoder=ENCODER, connector="linear")))
    assert labels
    for leaf, group in labels.items():
        assert group == ("lora" if "lora/" in leaf else "compressor")


def test_a_leaf_without_a_group_is_named():
    with pytest.raises(ValueError, match="surprise/w"):
        label_groups({"surprise": {"w": jnp.zeros(2)}})


def test_decay_is_for_matrices_only():
    decayed = {name for name, yes in by_name(is_decayed(trainable_of())).items() if yes}
    kept = set(by_name(trainable_of())) - decayed
    assert kept == {
        "compressor/architecture/queries",
        "compressor/architecture/query_norm",
        "compressor/architecture/ffn_norm",
        "compressor/architecture/self_norm",
    }


@pytest.mark.parametrize("name", [*ARCHITECTURES, "none"])
def test_decay_is_for_the_leaves_that_it_always_was_for(name):
    """Runs go on as they began, whatever decides it now."""
    matrices = r".*/(a|b|query|key|value|out|into|mix_in|mix_out|projection)"
    gated = {"slot_start": "window_means", "connector": "linear"}
    decayed = by_name(is_decayed(trainable_of(name, encoder=ENCODER, **gated)))
    assert decayed == {leaf: bool(re.fullmatch(matrices, leaf)) for leaf in decayed}


def test_schedule_warms_up_and_ends_at_zero():
    config = OptimizerConfig()
    lr = schedules(config, 1000)
    np.testing.assert_allclose(lr["compressor"](0), 1e-4 / 51, rtol=1e-6)
    np.testing.assert_allclose(lr["compressor"](50), 1e-4, rtol=1e-6)
    np.testing.assert_allclose(lr["lora"](50), 5e-5, rtol=1e-6)
    np.testing.assert_allclose(lr["lora"](525), 2.5e-5, rtol=1e-3)
    assert float(lr["compressor"](1000)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("total", [0, 1, 2, 3])
def test_schedules_of_very_short_runs_are_finite(total):
    for schedule in schedules(OptimizerConfig(), total).values():
        assert all(np.isfinite(float(schedule(step))) for step in range(4))


def test_an_update_against_adamw_by_hand():
    """One step from zero moments moves each weight by its group's rate: Adam's ratio is ±1, plus
    decay.
    """
    config = OptimizerConfig(warmup_fraction=0.0, clip_norm=1e9, weight_decay=0.1)
    trainable = trainable_of()
    optimizer = make_optimizer(config, 1000, trainable)
    update, opt_state = jax.jit(optimizer.update), optimizer.init(trainable)
    grads = jax.tree.map(lambda x: jnp.where(x >= 0, 2.0, -3.0), trainable)
    _, opt_state = update(grads, opt_state, trainable)  # warm-up takes one step
    updates, _ = update(grads, opt_state, trainable)
    decays = by_name(is_decayed(trainable))
    weights, signs = by_name(trainable), by_name(grads)
    for name, moved in by_name(updates).items():
        rate = 5e-5 if name.startswith("lora/") else 1e-4
        expected = -rate * (jnp.sign(signs[name]) + 0.1 * decays[name] * weights[name])
        np.testing.assert_allclose(moved, expected, rtol=1e-3)


def test_moments_decay_between_two_different_gradients():
    """Adam by hand (Kingma and Ba 2015, algorithm 1): b1 = 0.9, b2 = 0.999, ε = 1e-8."""
    config = OptimizerConfig(warmup_fraction=0.0, clip_norm=1e9, weight_decay=0.0)
    trainable = trainable_of()
    optimizer = make_optimizer(config, 1000, trainable)
    update, opt_state = jax.jit(optimizer.update), optimizer.init(trainable)
    first, second = 0.5, -3.0
    for gradient in (first, second):
        grads = jax.tree.map(lambda x, g=gradient: jnp.full_like(x, g), trainable)
        updates, opt_state = update(grads, opt_state, trainable)
    m = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    v = (0.999 * 0.001 * first**2 + 0.001 * second**2) / (1 - 0.999**2)
    for name, moved in by_name(updates).items():
        rate = schedules(config, 1000)["lora" if name.startswith("lora/") else "compressor"](1)
        np.testing.assert_allclose(moved, -rate * m / (v**0.5 + 1e-8), rtol=1e-4, err_msg=name)


def test_clipping_scales_the_whole_gradient():
    trainable = trainable_of()
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0), 10, trainable)
    clip = optax.clip_by_global_norm(1.0)
    grads = jax.tree.map(lambda x: jnp.ones_like(x), trainable)
    clipped, _ = clip.update(grads, clip.init(trainable))
    update, start = jax.jit(optimizer.update), optimizer.init(trainable)
    once, again = (update(g, start, trainable)[1] for g in (grads, clipped))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_scorer_has_a_rate_and_a_norm_of_its_own():
    select = SelectConfig("conv")
    trainable = trainable_of("select", select=select, lora=LoraConfig(rank=2))
    names = by_name(label_groups(trainable))
    scorers = {name for name in names if name.startswith("selector/learned/")}
    assert len(scorers) == 4
    assert all((group == "scorer") == (name in scorers) for name, group in names.items())
    config = OptimizerConfig(lora_lr=1e-3, scorer_lr=1e-2, clip_norm=1.0, weight_decay=0.0)
    optimizer = make_optimizer(config, 10, trainable)
    gradients = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full(x.shape, 1e3 if path_name(path) in scorers else 1e-6), trainable
    )
    update, state = jax.jit(optimizer.update), optimizer.init(trainable)
    for _ in range(2):  # clipped together, those of the adapters would be nothing beside epsilon
        updates, state = update(gradients, state, trainable)
    rates = schedules(config, 10)
    for name, update in by_name(updates).items():
        rate = rates["scorer" if name in scorers else "lora"](1)
        np.testing.assert_allclose(-update, np.full(update.shape, rate), rtol=0.02)


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="nothing is trainable"):
        make_optimizer(OptimizerConfig(), 10, {})
