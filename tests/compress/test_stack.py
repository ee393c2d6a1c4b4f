"""Two architectures stacked: what is read, what is refused, and that they train."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.compress.architectures import check_architecture, find_architecture
from gistjax.compress.parameters import export_trainable, import_trainable, split_model, start_from
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.model.config import LlamaConfig
from gistjax.names import ARCHITECTURES, own_parts
from gistjax.validation import validate
from tests.helpers.tiny import TINY, check_learns_alike, tiny_base, tiny_model

LLAMA_8B = LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128)
M, C = 4, 17
STACKABLE = [name for name in ARCHITECTURES if name != "mark"]
PAIRS = ["+".join(pair) for pair in itertools.product(STACKABLE, repeat=2)]
SOME = ["conv+gist", "pooling+conv", "gist+cross_attention", "cross_attention+pooling"]
LENGTHS, USED = np.array([17, 7, 1]), np.array([4, 3, 1])


def make(name, slots=M):
    return find_architecture(name)(TINY, slots, C // slots, jax.random.key(0))


def states_of(rng):
    return jnp.array(rng.normal(size=(3, C, 32)), jnp.float32)


@pytest.mark.parametrize(
    "name", [x if x in SOME else pytest.param(x, marks=pytest.mark.long) for x in PAIRS]
)
def test_any_pair_is_an_architecture(name):
    config = CompressionConfig(architecture=name, target_length=M)
    validate(config)
    check_architecture(config, TINY)


@pytest.mark.parametrize("slots", [32, 64, 128])
def test_parameters_are_the_sum_of_both(slots):
    def size(name, M, ratio):
        kind = find_architecture(name)
        made = nnx.eval_shape(lambda: kind(LLAMA_8B, M, ratio, jax.random.key(0)))
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(made)))

    factor = {32: 4, 64: 2, 128: 2}[slots]
    ratio = 512 // slots
    whole = size("conv+gist", slots, ratio)
    assert whole == size("conv", factor * slots, ratio // factor) + size("gist", slots, factor)


@pytest.mark.parametrize("name", SOME)
def test_slots_padding_and_gradients(name, rng):
    architecture, states = make(name), states_of(rng)
    length, used = jnp.array(LENGTHS), jnp.array(USED)
    padded = np.arange(C) >= LENGTHS[:, None]
    real = np.arange(M) < USED[:, None]
    run = jax.jit(lambda x: architecture(x, length, used, M))
    before = run(states)
    chex.assert_shape(before, (3, M, 32))
    chex.assert_type(run(states.astype(jnp.bfloat16)), jnp.bfloat16)
    after = run(jnp.where(padded[:, :, None], 1e9, states))
    np.testing.assert_array_equal(np.asarray(before)[real], np.asarray(after)[real])
    weigh = jnp.array(rng.normal(size=(3, M, 32))) * real[:, :, None]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weigh * run(x))))(states)
    influence = np.abs(np.asarray(gradient)).sum(-1)
    assert (influence[padded] == 0).all()
    assert (influence[~padded] > 0).all(), "every real token reaches some slot"


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(SOME), st.integers(1, C), st.integers(1, M))
def test_what_is_read_sums_to_one_over_real_tokens(name, length, used):
    used = min(used, length)
    states = jnp.array(np.random.default_rng(length).normal(size=(1, C, 32)), jnp.float32)
    weights = make(name).weights(states, jnp.array([length]), jnp.array([used]), M)
    chex.assert_shape(weights, (1, M, C))
    weights_MxC = np.asarray(weights)[0, :used]
    np.testing.assert_allclose(weights_MxC.sum(1), 1, rtol=1e-5)
    assert (weights_MxC >= 0).all() and not weights_MxC[:, length:].any()


def test_what_is_read_is_the_jacobian_where_all_is_linear(rng):
    """Means of means, and learned weights that are no function of the states."""
    states, arguments = states_of(rng), (jnp.array(LENGTHS), jnp.array(USED), M)
    for name in ("mean_pool+mean_pool", "pooling+pooling", "mean_pool+pooling"):
        architecture = make(name)
        jacobian = jax.jacobian(lambda x, a=architecture: a(x, *arguments)[..., 0])(states)
        read = np.stack([np.asarray(jacobian)[b, :, b, :, 0] for b in range(3)])
        weights = np.asarray(architecture.weights(states, *arguments))
        for row, used in enumerate(USED):
            np.testing.assert_allclose(weights[row, :used], read[row, :used], atol=1e-6)


def test_a_stack_of_what_does_not_tell_does_not_tell():
    assert hasattr(find_architecture("conv+gist"), "weights")
    silent = find_architecture("tests.helpers.last_token.LastToken+gist")
    assert not hasattr(silent, "weights")
    assert own_parts("tests.helpers.last_token.LastToken+gist") == [
        "tests.helpers.last_token.LastToken"
    ]
    assert own_parts("conv+gist") == own_parts("select") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv+gits", "no architecture is called 'gits'; did you mean 'gist'"),
        ("conv+gist+pooling", "has 3 parts, and a stack has two"),
        ("conv+", "no architecture is called ''"),
        ("mark+gist", "'mark' reads nothing"),
        ("conv+mark", "'mark' reads nothing"),
        ("conv+select", "'select' makes no slots"),
        ("none+gist", "'none' makes no slots"),
    ],
)
def test_what_cannot_be_stacked_is_refused_by_name(name, message):
    with pytest.raises(ConfigError, match=message):
        validate(CompressionConfig(architecture=name))
    with pytest.raises(ConfigError, match=message):
        find_architecture(name)


@pytest.mark.slow
def test_a_stack_is_exported_loaded_and_resized(tmp_path):
    model = tiny_model("cross_attention+conv")
    graphdef, trainable, _ = split_model(model)
    file = tmp_path / "compressor.safetensors"
    export_trainable(trainable, file, {})
    other = split_model(tiny_model("cross_attention+conv", seed=2))[1]
    chex.assert_trees_all_equal(import_trainable(file, other), trainable)
    fewer = split_model(tiny_model("cross_attention+conv", target_length=2, seed=2))[1]
    queries = start_from(file, fewer, "cross_attention+conv").compressor.architecture.first.queries
    wanted = fewer.compressor.architecture.first.queries[...]
    np.testing.assert_array_equal(
        queries[...], trainable.compressor.architecture.first.queries[...][: len(wanted)]
    )


@pytest.mark.slow
def test_a_stack_learns_and_two_devices_give_the_loss_of_one():
    base = dataclasses.replace(TINY, n_layers=1)
    check_learns_alike(lambda: tiny_model("conv+gist", base=tiny_base(base)))
