"""Weights stored in one dtype and read in another: the same as weights that were cast before."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.config import LoraConfig
from gistjax.model.layer import random_initializer
from gistjax.model.llama import Execution, Llama
from gistjax.model.lora import LoRA
from tests.helpers.tiny import TINY


def bases(scan):
    """A base stored in bfloat16 and read in fp32, and the same with its weights cast."""
    stored = Llama(
        TINY,
        random_initializer(jax.random.key(0), jnp.bfloat16),
        scan,
        Execution(dtype="float32"),
    )
    cast = Llama(TINY, random_initializer(jax.random.key(1), jnp.float32), scan)
    nnx.update(cast, jax.tree.map(lambda w: w.astype(jnp.float32), nnx.state(stored)))
    return stored, cast


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("adapted", [True, False])
def test_float32_compute_over_bfloat16_storage_equals_casting_the_weights(scan, adapted, rng):
    stored, cast = bases(scan)
    lora = LoRA(TINY, LoraConfig(rank=2), jax.random.key(2)) if adapted else None
    if lora is not None:
        for adapter in lora.adapters.values():
            adapter.b[...] = 0.3 * jax.random.normal(jax.random.key(3), adapter.b[...].shape)
    ids = jnp.array(rng.integers(0, 61, (2, 40)))  # enough rows for one product with the adapter
    positions = jnp.arange(40)[None]

    def run(x, base):
        h, cache = base(x, positions, lora=lora, cache=base.empty_cache(2, 40))
        return jnp.sum(jnp.sin(base.logits(h))), (base.logits(h), cache)

    def outcome(base):
        graphdef, state = nnx.split(base)
        step = jax.jit(
            jax.value_and_grad(lambda x, s: run(x, nnx.merge(graphdef, s)), has_aux=True)
        )
        return step(base.embed(ids), state)

    one, other = outcome(stored), outcome(cast)
    assert one[0][1][1].k is not None and stored.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(one, other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())  # bfloat16 keeps 4e-3
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(stored))} == {jnp.bfloat16.dtype}


def test_merged_adapters_are_added_in_the_dtype_of_compute():
    stored, cast = bases(scan=True)
    lora = LoRA(TINY, LoraConfig(rank=2), jax.random.key(2))
    for adapter in lora.adapters.values():
        adapter.b[...] = 1e-3 * jax.random.normal(jax.random.key(3), adapter.b[...].shape)
    merged = [base.merged(lora).layers.down[...] for base in (stored, cast)]
    np.testing.assert_array_equal(*merged)
    assert merged[0].dtype == jnp.float32


def test_by_default_weights_are_read_as_they_are_stored():
    base = Llama(TINY, random_initializer(jax.random.key(0), jnp.bfloat16))
    assert base.dtype == base.embed(jnp.zeros((1, 2), jnp.int32)).dtype == jnp.bfloat16
    assert base.empty_cache(1, 2).k.dtype == base.dtype
