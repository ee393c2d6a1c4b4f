import chex
import jax
import jax.numpy as jnp
import pytest

from gistjax.config import PROJECTIONS, LoraConfig
from gistjax.model import lora as lora_module
from gistjax.model.layer import fuse_qkv
from gistjax.model.lora import LoRA, LoRAWeights, lora_dot
from tests.helpers.tiny import TINY


@pytest.mark.parametrize("extend_from", [0, 1_000_000])
@pytest.mark.parametrize("outputs", [(12,), (2, 4, 8)])
def test_both_ways_of_the_adapted_product_equal_the_plain_sum(extend_from, outputs, monkeypatch):
    monkeypatch.setattr(lora_module, "EXTEND_FROM", extend_from)
    keys = jax.random.split(jax.random.key(0), 5)
    x, w, a, b, dy = (
        jax.random.normal(key, shape)
        for key, shape in zip(
            keys,
            [(2, 5, 16), (16, *outputs), (16, 3), (3, *outputs), (2, 5, *outputs)],
            strict=True,
        )
    )

    def fast(x, a, b):
        return jnp.sum(lora_dot(x, w, LoRAWeights(a, b)) * dy)

    def plain(x, a, b):
        return jnp.sum((jnp.tensordot(x, w, 1) + jnp.tensordot(x @ a, b, 1)) * dy)

    for f in (lambda g: g(x, a, b), lambda g: jax.grad(g, (0, 1, 2))(x, a, b)):
        chex.assert_trees_all_close(f(fast), f(plain), rtol=1e-4, atol=1e-4)


def test_no_gradient_of_the_frozen_matrix_is_formed():
    x, w, a, b = (jnp.ones(shape) for shape in ((2, 5, 16), (16, 12), (16, 3), (3, 12)))
    jaxpr = jax.make_jaxpr(jax.grad(lambda a: jnp.sum(lora_dot(x, w, LoRAWeights(a, b)))))(a)
    shapes = [v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars]
    assert (16, 3) in shapes and (16, 12) not in shapes


@pytest.mark.parametrize("targets", [PROJECTIONS, ("q", "v"), ("k", "up"), ("down",)])
def test_fused_factors_are_the_projections_own(targets):
    lora = LoRA(TINY, LoraConfig(rank=2, alpha=6.0, targets=targets), jax.random.key(0))
    delta = {
        name: jnp.zeros((3, d_in, d_out))
        for name, (d_in, d_out) in lora_module.projection_sizes(TINY).items()
    }
    for name, adapter in lora.adapters.items():
        adapter.b[...] = jax.random.normal(jax.random.key(len(name)), adapter.b[...].shape)
        delta[name] = 3.0 * jnp.einsum("lir,lro->lio", adapter.a[...], adapter.b[...])
    expected = {
        "qkv": fuse_qkv(delta["q"], delta["k"], delta["v"], TINY.n_kv_heads),
        "gate_up": jnp.stack([delta["gate"], delta["up"]], axis=-2),
        "o": delta["o"],
        "down": delta["down"],
    }
    fused = lora.fused(TINY, jnp.float32)
    for name, matrix in expected.items():
        if name in fused:
            found = jnp.einsum("lir,lr...->li...", fused[name].a, fused[name].b)
            chex.assert_trees_all_close(found, matrix, rtol=1e-5, atol=1e-5)
        else:
            assert not matrix.any(), name
