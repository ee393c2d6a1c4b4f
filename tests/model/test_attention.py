import chex
import jax
import jax.numpy as jnp
import pytest

from gistjax.model.attention import attention, causal_attention, choose_kernel
from gistjax.model.kv_cache import CacheLayer, KeptLayer
from gistjax.model.masks import Bidirectional, causal_mask, lengths_to_valid
from gistjax.runtime.devices import DETERMINISTIC

GPU = jax.default_backend() == "gpu"


def inputs(T, dtype=jnp.float32, rows=2):
    keys = jax.random.split(jax.random.key(T), 3)
    shapes = ((rows, T, 4, 16), (rows, T, 2, 16), (rows, T, 2, 16))
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def test_entries_that_are_kept_are_weighed_as_others():
    """In bf16 too, where the square root of 24 is rounded."""
    keys = jax.random.split(jax.random.key(0), 3)
    q = 8 * jax.random.normal(keys[0], (2, 5, 4, 24), jnp.bfloat16)
    k, v = (jax.random.normal(key, (2, 9, 2, 24), jnp.bfloat16) for key in keys[1:])
    entries = KeptLayer(k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.ones((2, 2, 9), bool))
    cache = CacheLayer(*(jnp.ones((2, 2, 5, 24), jnp.bfloat16),) * 2, 0, entries)
    ours = attention(q, k[:, :5], v[:, :5], cache, jnp.zeros((2, 5, 5), bool))
    theirs = attention(q, k, v, None, jnp.ones((2, 5, 9), bool))
    chex.assert_trees_all_close(*(x.astype(jnp.float32) for x in (ours, theirs)), atol=1e-3)


def explicit(q, k, v):
    T = q.shape[1]
    mask = causal_mask(jnp.ones((2, T), bool))
    return attention(q, k, v, None, mask)


@pytest.mark.parametrize("T", [1, 6, 7])
def test_causal_attention_is_that_of_the_causal_mask(T):
    chex.assert_trees_all_close(
        causal_attention(*inputs(T)), explicit(*inputs(T)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_bidirectional_attention_is_that_of_its_array(prefix):
    """Also its gradients; of padding nothing is said, and of an empty row that it is finite."""
    mask, arrays = Bidirectional(jnp.array([7, 4, 3]), prefix), inputs(7, rows=3)
    real = lengths_to_valid(mask.length_B, 7)[..., None, None]

    def total(q, k, v, mask):
        y = attention(q, k, v, None, mask)
        return jnp.sum(jnp.sin(jnp.where(real, y, 0.0)))

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2)))
    results = [run(*arrays, m) for m in (mask, mask.array(7))]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)
    empty = attention(*arrays, None, Bidirectional(jnp.zeros(3, jnp.int32)))
    chex.assert_tree_all_finite(empty)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="cuDNN needs an NVIDIA GPU; run with JAX_PLATFORMS=cuda")
@pytest.mark.parametrize("T", [64, 115, 160])
def test_cudnn_equals_the_causal_mask(T):
    arrays = inputs(T, jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in arrays]

    def total(f):
        return lambda q, k, v: jnp.sum(jnp.sin(f(q, k, v).astype(jnp.float32)))

    fast = jax.value_and_grad(total(lambda *a: causal_attention(*a, "cudnn")), (0, 1, 2))(*arrays)
    slow = jax.value_and_grad(total(explicit), (0, 1, 2))(*wide)
    assert_near(fast, slow)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="cuDNN needs an NVIDIA GPU; run with JAX_PLATFORMS=cuda")
@pytest.mark.parametrize("prefix", [0, 19])
def test_cudnn_equals_the_bidirectional_array(prefix):
    mask, arrays = Bidirectional(jnp.array([115, 64]), prefix), inputs(115, jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in arrays]
    real = lengths_to_valid(mask.length_B, 115)[..., None, None]

    def total(q, k, v, mask, kernel):
        y = attention(q, k, v, None, mask, kernel).astype(jnp.float32)
        return jnp.sum(jnp.sin(jnp.where(real, y, 0.0)))

    run = jax.value_and_grad(total, (0, 1, 2))
    assert_near(run(*arrays, mask, "cudnn"), run(*wide, mask.array(115), "xla"))


def assert_near(fast, slow):
    for ours, reference in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        error = jnp.linalg.norm(ours.astype(jnp.float32) - reference) / jnp.linalg.norm(reference)
        assert error < 1e-2


def test_the_kernel_is_chosen_by_device_dtype_and_width():
    assert choose_kernel("auto", 64, jnp.dtype("bfloat16")) == ("cudnn" if GPU else "xla")
    assert choose_kernel("auto", 64, jnp.dtype("float32")) == "xla"
    assert choose_kernel("auto", 20, jnp.dtype("bfloat16")) == "xla"
    assert choose_kernel("xla", 64, jnp.dtype("bfloat16")) == "xla"
    assert choose_kernel("auto", 64, jnp.dtype("bfloat16"), "gpu") == "cudnn"
    assert choose_kernel("auto", 64, jnp.dtype("bfloat16"), "gpu", deterministic=True) == "xla"


@pytest.mark.parametrize(
    "flags, kernel",
    [
        (DETERMINISTIC, "xla"),
        ("--xla_gpu_deterministic_ops --xla_dump_to=x", "xla"),
        ("--xla_gpu_deterministic_ops=false", "cudnn"),
        ("", "cudnn"),
    ],
)
def test_deterministic_steps_have_no_cudnn(flags, kernel, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert choose_kernel("auto", 64, jnp.dtype("bfloat16"), "gpu") == kernel
