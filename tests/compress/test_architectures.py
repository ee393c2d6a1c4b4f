import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from gistjax.compress.architectures import check_architecture, find_architecture, stretched
from gistjax.compress.layers import Attention, fitting_heads
from gistjax.compress.windows import masked_softmax, window_ends, window_means, windows
from gistjax.config import ARCHITECTURES, CompressionConfig
from gistjax.errors import ConfigError
from gistjax.model.config import LlamaConfig
from tests.helpers.lazy import torch
from tests.helpers.tiny import TINY

LLAMA_8B = LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128)
BUDGET = {
    "cross_attention": 6,
    "conv": 2,
    "pooling": 1,
    "gist": 8,
    "mean_pool": 0,
    "mark": 1 / 4096,
}
READING = [name for name in ARCHITECTURES if name != "mark"]
M, C = 4, 16


def make(name, slots=M):
    return find_architecture(name)(TINY, slots, C // slots, jax.random.key(0))


def slots_of(architecture, states, length, used, n=M):
    """What the architecture makes, as one program."""
    graphdef, state = nnx.split(architecture)
    return _slots_of(graphdef, n, state, states, length, used)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _slots_of(graphdef, n, state, states, length, used):
    return nnx.merge(graphdef, state)(states, length, used, n)


def parameters(architecture):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(architecture)))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("slots", [32, 64, 128])
def test_parameter_budget_at_8b(name, slots):
    architecture = nnx.eval_shape(
        lambda: find_architecture(name)(LLAMA_8B, slots, 512 // slots, jax.random.key(0))
    )
    budget = BUDGET[name] * 4096**2
    assert abs(parameters(architecture) - budget) <= 0.05 * budget


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_and_dtypes(name, rng):
    states = jnp.array(rng.normal(size=(2, C, 32)), jnp.bfloat16)
    slots = slots_of(make(name), states, jnp.array([16, 9]), jnp.array([4, 4]))
    chex.assert_shape(slots, (2, M, 32))
    chex.assert_type(slots, jnp.bfloat16)
    assert bool(jnp.isfinite(slots.astype(jnp.float32)).all())


@pytest.mark.parametrize("name", READING)
def test_padding_changes_no_slot_and_receives_no_gradient(name, rng):
    architecture = make(name)
    states = jnp.array(rng.normal(size=(3, C, 32)), jnp.float32)
    length, used = jnp.array([16, 7, 2]), jnp.array([4, 4, 2])
    padded = np.arange(C) >= np.asarray(length)[:, None]
    poisoned = jnp.where(padded[:, :, None], 1e9, states)
    real = np.arange(M) < np.asarray(used)[:, None]
    before, after = (slots_of(architecture, x, length, used) for x in (states, poisoned))
    np.testing.assert_array_equal(np.asarray(before)[real], np.asarray(after)[real])
    weigh = jnp.array(rng.normal(size=(3, M, 32))) * real[:, :, None]
    grad = jax.jit(jax.grad(lambda x: jnp.sum(weigh * architecture(x, length, used, M))))(states)
    influence = np.abs(np.asarray(grad)).sum(-1)
    assert (influence[padded] == 0).all()
    assert (influence[~padded] > 0).all(), "every real token reaches some slot"


def test_a_mark_reads_nothing(rng):
    architecture, args = make("mark"), (jnp.array([16, 7]), jnp.array([4, 4]), M)
    states = jnp.array(rng.normal(size=(2, C, 32)), jnp.float32)
    slots, gradient = jax.value_and_grad(lambda x: jnp.sum(architecture(x, *args)))(states)
    assert (
        not np.asarray(gradient).any() and not np.asarray(architecture.weights(states, *args)).any()
    )
    chex.assert_trees_all_close(slots, 2 * M * architecture.vector[...].sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["conv", "pooling", "mean_pool"])
def test_local_architectures_keep_the_order(name, rng):
    architecture = make(name)
    states = jnp.array(rng.normal(size=(1, C, 32)), jnp.float32)
    used = jnp.array([C]), jnp.array([M]), M
    jacobian = jax.jit(jax.jacobian(lambda x: architecture(x, *used)[0].sum(-1)))(states)
    influence = np.abs(np.asarray(jacobian))[:, 0].sum(-1)  # [M, C]
    centre = (influence * np.arange(C)).sum(1) / influence.sum(1)
    assert (np.diff(centre) > 2).all()


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_are_those_of_adaptive_pooling(n, slots):
    inside = np.asarray(windows(jnp.array([n]), jnp.array([slots]), 12, 40))[0]
    assert inside[:slots].any(axis=1).all(), "no window is empty"
    assert not inside[slots:].any() and not inside[:, n:].any()
    assert inside[:, :n].any(axis=0).all(), "no token is left out"
    ends = np.asarray(window_ends(jnp.array([n]), jnp.array([slots]), 12))[0]
    last = [np.flatnonzero(row)[-1] for row in inside[:slots]]
    np.testing.assert_array_equal(ends[:slots], last)
    tokens = np.random.default_rng(n).normal(size=(1, 40, 3)).astype(np.float32)
    means = window_means(jnp.array(tokens), jnp.array([n]), jnp.array([slots]), 12)
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.tensor(tokens[:, :n]).mT, slots).mT
    np.testing.assert_allclose(np.asarray(means)[:, :slots], expected, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fewer_slots_are_those_of_a_row_that_uses_fewer(name, rng):
    architecture, states = make(name), jnp.array(rng.normal(size=(2, C, 32)), jnp.float32)
    length, used = jnp.array([16, 9]), jnp.array([3, 2])
    few, many = (slots_of(architecture, states, length, used, n) for n in (3, M))
    for b in range(2):
        np.testing.assert_allclose(few[b, : used[b]], many[b, : used[b]], atol=1e-5)


def test_pooling_starts_as_mean_pool(rng):
    states = jnp.array(rng.normal(size=(2, C, 32)), jnp.float32)
    args = (states, jnp.array([16, 9]), jnp.array([4, 4]))
    found = (slots_of(make(name), *args) for name in ("pooling", "mean_pool"))
    chex.assert_trees_all_close(*found, atol=1e-6)


def test_pooling_prefers_what_its_score_prefers(rng):
    architecture = make("pooling")
    architecture.score[...] = jnp.zeros(32).at[0].set(50.0)
    states = jnp.array(rng.normal(size=(1, C, 32)), jnp.float32)
    weights = np.asarray(architecture.weights(states, jnp.array([C]), jnp.array([M]), M))[0]
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    x = np.asarray(states)[0]
    score = x[:, 0] / np.sqrt((x * x).mean(-1))
    for m in range(M):
        assert weights[m].argmax() == 4 * m + score[4 * m : 4 * m + 4].argmax()


def test_convolution_against_torch(rng):
    architecture = make("conv")
    width = architecture.kernel[...].shape[0]
    architecture.kernel[...] = jnp.array(rng.normal(size=(width, 32)), jnp.float32)
    x = rng.normal(size=(2, C, 32)).astype(np.float32)
    expected = torch.nn.functional.conv1d(
        torch.tensor(x).mT,
        torch.tensor(np.asarray(architecture.kernel[...])).T[:, None],
        stride=architecture.stride,
        padding=width // 2,
        groups=32,
    ).mT
    np.testing.assert_allclose(architecture.convolve(jnp.array(x)), expected, atol=1e-5)


def test_attention_against_torch_where_all_stand_at_one_place(rng):
    """At position 0 the rotation is the identity: plain multi-head attention is the reference."""
    attention = Attention(32, 4, jax.random.key(0))
    x, y = (rng.normal(size=(2, n, 32)).astype(np.float32) for n in (M, C))
    mask = np.arange(C) < np.array([16, 5])[:, None]
    zeros = (jnp.zeros((2, M)), jnp.zeros((2, C)))
    ours = attention(x, zeros[0], y, zeros[1], jnp.broadcast_to(mask[:, None], (2, M, C)))
    theirs = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    with torch.no_grad():
        rows = [attention.query, attention.key, attention.value]
        theirs.in_proj_weight.copy_(torch.cat([torch.tensor(np.asarray(w[...])).T for w in rows]))
        theirs.out_proj.weight.copy_(torch.tensor(np.asarray(attention.out[...])).T)
        y_t = torch.tensor(y)
        expected, _ = theirs(torch.tensor(x), y_t, y_t, key_padding_mask=torch.tensor(~mask))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_masked_softmax_of_nothing_is_zero_with_finite_gradient():
    scores = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    mask = jnp.array([[True, False], [False, False]])
    np.testing.assert_allclose(masked_softmax(scores, mask), [[1.0, 0.0], [0.0, 0.0]])
    grad = jax.grad(lambda s: masked_softmax(s, mask).sum())(scores)
    assert bool(jnp.isfinite(grad).all())


def test_a_stretched_kernel_weighs_as_much_and_keeps_its_form():
    kernel_WxD = np.array([[0.0, 1.0], [4.0, 1.0], [0.0, 1.0]], np.float32)
    for width in (1, 2, 3, 7):
        other_WxD = stretched(kernel_WxD, width)
        chex.assert_shape(other_WxD, (width, 2))
        chex.assert_trees_all_close(other_WxD.sum(axis=0), kernel_WxD.sum(axis=0), rtol=1e-6)
        chex.assert_trees_all_close(other_WxD, other_WxD[::-1], rtol=1e-6)
        chex.assert_trees_all_close(
            other_WxD[:, 1], np.full(width, 3 / width, np.float32), rtol=1e-6
        )
    assert np.argmax(stretched(kernel_WxD, 7)[:, 0]) == 3
    chex.assert_trees_all_equal(stretched(kernel_WxD, 3), kernel_WxD)


@pytest.mark.parametrize(
    ("D", "n_heads", "fits"), [(60, 4, 3), (64, 6, 4), (62, 2, 1), (576, 9, 9), (4096, 32, 32)]
)
def test_attention_takes_the_heads_that_divide_its_width_evenly(D, n_heads, fits):
    assert fitting_heads(D, n_heads) == fits


@pytest.mark.parametrize("name", ["gist", "cross_attention"])
def test_a_base_whose_width_its_heads_do_not_divide(name):
    config = CompressionConfig(architecture=name, target_length=4)
    odd = dataclasses.replace(TINY, d_model=60, head_dim=16)
    check_architecture(config, odd)
    with pytest.raises(ConfigError, match="even width, not 61"):
        check_architecture(config, dataclasses.replace(odd, d_model=61))
