import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.config import PROJECTIONS, LoraConfig
from gistjax.model.layer import Frozen
from gistjax.model.lora import LoRA, Trainable, projection_sizes
from gistjax.model.masks import causal_mask, lengths_to_valid
from tests.helpers.tiny import (
    FAMILIES,
    TINY,
    in_turn,
    positions_of,
    projections,
    put_projections,
    tiny_base,
)


def run(base, x, valid, **kwargs):
    return call(base, x, positions_of(valid), causal_mask(valid), **kwargs)[0]


def call(base, *args, **kwargs):
    """The base as one program, which bases that differ in their weights alone share."""
    graphdef, state = nnx.split(base)
    n_layers = kwargs.pop("n_layers", None)
    return _call(graphdef, n_layers, state, args, kwargs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(graphdef, n_layers, state, args, kwargs):
    return nnx.merge(graphdef, state)(*args, n_layers=n_layers, **kwargs)


def test_shapes_and_dtypes(rng):
    base = tiny_base()
    ids = jnp.array(rng.integers(0, 61, (2, 7)))
    h = run(base, base.embed(ids), jnp.ones((2, 7), bool))
    chex.assert_shape(h, (2, 7, 32))
    logits = base.logits(h.astype(jnp.bfloat16))
    chex.assert_shape(logits, (2, 7, 61))
    chex.assert_type(logits, jnp.float32)


@pytest.mark.parametrize(
    ("family", "count"), [("llama", 9), ("qwen2", 10), ("qwen3", 11), ("smollm3", 9)]
)
def test_every_base_weight_is_frozen(family, count):
    base = tiny_base(FAMILIES[family])
    leaves = jax.tree.leaves(nnx.state(base), is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(leaves) == count
    assert all(isinstance(leaf, Frozen) for leaf in leaves)


@pytest.mark.slow
@pytest.mark.parametrize(("scan", "remat"), [(False, False), (True, True), (False, True)])
def test_unrolled_and_rematerialised_layers_give_the_same(rng, scan, remat):
    base, other = tiny_base(), tiny_base(scan=scan, remat=remat)
    lora = LoRA(TINY, LoraConfig(rank=2), jax.random.key(0))
    x = jnp.array(rng.normal(size=(2, 5, 32)), jnp.float32)
    valid = jnp.ones((2, 5), bool)

    def loss(trained, base):
        lora, x = trained
        return jnp.sum(run(base, x, valid, lora=lora) ** 3)

    chex.assert_trees_all_close(run(base, x, valid), run(other, x, valid), rtol=1e-5, atol=1e-6)
    grads = [jax.jit(jax.grad(loss))((lora, x), b) for b in (base, other)]
    chex.assert_trees_all_close(*(jax.tree.leaves(g) for g in grads), rtol=1e-4, atol=1e-3)
    chex.assert_trees_all_close(
        run(base, x, valid, n_layers=2), run(other, x, valid, n_layers=2), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("scan", [True, False])
def test_without_a_mask_attention_is_causal(rng, scan):
    base = tiny_base(scan=scan)
    x = jnp.array(rng.normal(size=(2, 7, 32)), jnp.float32)
    valid = lengths_to_valid(jnp.array([7, 4]), 7)
    causal, _ = call(base, x, jnp.arange(7)[None])
    chex.assert_trees_all_close(causal[valid], run(base, x, valid)[valid], rtol=1e-5, atol=1e-5)


def test_a_mask_of_the_last_positions_leaves_those_before_causal(rng):
    base = tiny_base()
    x = jnp.array(rng.normal(size=(2, 7, 32)), jnp.float32)
    mask = np.asarray(causal_mask(jnp.ones((2, 7), bool))).copy()
    mask[:, 5:, 1:3] = False
    whole, _ = call(base, x, jnp.arange(7)[None], jnp.array(mask))
    tail, _ = call(base, x, jnp.arange(7)[None], jnp.array(mask[:, 5:]))
    chex.assert_trees_all_close(tail, whole, rtol=1e-5, atol=1e-5)


def test_gradients_prove_causality_and_padding(rng):
    base = tiny_base()
    x = jnp.array(rng.normal(size=(2, 6, 32)), jnp.float32)
    valid = lengths_to_valid(jnp.array([6, 4]), 6)
    # d output at t / d input at u, summed over channels
    jacobian = jax.jit(jax.jacobian(lambda x: run(base, x, valid).sum(-1)))(x)
    influence = np.abs(np.asarray(jacobian)).sum(-1)
    for b, t in np.ndindex(2, 6):
        assert (influence[b, t, 1 - b] == 0).all(), "rows are independent"
        if valid[b, t]:
            for u in range(6):
                may_see = u <= t and bool(valid[b, u])
                assert (influence[b, t, b, u] > 0) == may_see, (b, t, u)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "scan"), in_turn(FAMILIES, (False, True)))
def test_cache_in_pieces_equals_one_pass(rng, scan, family):
    base = tiny_base(FAMILIES[family], scan=scan)
    x = jnp.array(rng.normal(size=(2, 7, 32)), jnp.float32)
    valid = jnp.ones((2, 7), bool)
    whole = run(base, x, valid)
    cache = base.empty_cache(2, 9)
    assert cache.length == 9
    mask = jnp.pad(causal_mask(valid), ((0, 0), (0, 0), (0, 2)))
    pieces = []
    for start, end in [(0, 3), (3, 4), (4, 7)]:
        h, cache = call(
            base,
            x[:, start:end],
            positions_of(valid)[:, start:end],
            mask[:, start:end],
            cache=cache,
            start=start,
        )
        pieces.append(h)
    chex.assert_trees_all_close(jnp.concatenate(pieces, 1), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "norms", "choices"),
    [("llama", 2, 1), ("qwen2", 2, 1), ("qwen3", 4, 1), ("smollm3", 2, 7)],
)
def test_a_family_adds_no_product_and_others_have_nothing_of_it(family, norms, choices):
    base = tiny_base(FAMILIES[family], scan=False)
    layer = str(jax.make_jaxpr(lambda b: b(jnp.ones((1, 4, 32)), jnp.arange(4)[None])[0])(base))
    assert layer.count(" rsqrt ") == norms + 1  # the layers are one program; and the final norm
    assert layer.count(" dot_general[") == 6
    assert layer.count("name=_where") == choices  # the mask; cosine and sine of three layers


def test_fewer_layers_are_the_first_ones(rng):
    base = tiny_base()
    x = jnp.array(rng.normal(size=(1, 5, 32)), jnp.float32)
    valid = jnp.ones((1, 5), bool)
    chex.assert_trees_all_equal(run(base, x, valid, n_layers=0), x)
    two = run(base, x, valid, n_layers=2)
    for leaf in ("qkv", "o", "gate_up", "down"):
        weights = getattr(base.layers, leaf)
        weights[...] = weights[...].at[2].set(jnp.nan)
    chex.assert_trees_all_close(run(base, x, valid, n_layers=2), two)


@pytest.mark.parametrize("target", PROJECTIONS)
def test_fresh_lora_changes_nothing_and_a_trained_one_does(rng, target):
    base = tiny_base()
    x = jnp.array(rng.normal(size=(1, 5, 32)), jnp.float32)
    valid = jnp.ones((1, 5), bool)
    lora = LoRA(TINY, LoraConfig(rank=2, targets=(target,)), jax.random.key(0))
    chex.assert_trees_all_equal(run(base, x, valid, lora=lora), run(base, x, valid))
    lora.adapters[target].b[...] += 0.1
    assert not np.allclose(run(base, x, valid, lora=lora), run(base, x, valid))


@pytest.mark.parametrize(("family", "scan"), in_turn(FAMILIES, (True, False)))
def test_lora_equals_merged_weights(rng, scan, family):
    base = tiny_base(FAMILIES[family], scan=scan)
    lora = LoRA(base.config, LoraConfig(rank=2, alpha=6.0), jax.random.key(0))
    for name, adapter in lora.adapters.items():
        adapter.b[...] = jax.random.normal(jax.random.key(len(name)), adapter.b[...].shape) * 0.1
    x = jnp.array(rng.normal(size=(1, 5, 32)), jnp.float32)
    valid = jnp.ones((1, 5), bool)
    adapted, plain = run(base, x, valid, lora=lora), run(base, x, valid)
    chex.assert_trees_all_close(run(base.merged(lora), x, valid), adapted, atol=1e-4)
    chex.assert_trees_all_equal(run(base, x, valid), plain)
    if not scan:
        return
    merged = projections(base)
    for name, adapter in lora.adapters.items():
        merged[name] += (6.0 / 2) * jnp.einsum("lir,lro->lio", adapter.a[...], adapter.b[...])
    put_projections(base, merged)
    chex.assert_trees_all_close(run(base, x, valid), adapted, atol=1e-4)


def test_lora_is_a_tree_of_its_own_beside_the_base():
    lora = LoRA(TINY, LoraConfig(rank=2), jax.random.key(0))
    _, trainable, frozen = nnx.split((tiny_base(), lora), Trainable, ...)
    sizes = projection_sizes(TINY)
    expected = sum(3 * 2 * (d_in + d_out) for d_in, d_out in sizes.values())
    assert sum(x.size for x in jax.tree.leaves(trainable)) == expected
    assert len(jax.tree.leaves(frozen)) == 9
