"""Bytes alive at the peak of small programs, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from gistjax.estimate.footprint import peak_bytes

B, D, F, R = 64, 8, 32, 2
ROW = 4 * B  # bytes of one fp32 column of B rows


def peak(function, *shapes, donated=()):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return peak_bytes(jax.jit(function).trace(*arguments).jaxpr, donated)


def test_elementwise_work_takes_its_result_alone():
    assert peak(lambda x: jnp.tanh(jnp.exp(x) * 2) + 1, (B, D)) == ROW * D


def test_a_result_may_take_the_place_of_a_donated_argument():
    assert peak(lambda x: x + 1, (B, D), donated=[True]) == 0


def test_what_is_added_to_a_product_is_added_in_its_buffer():
    def adapted(x, w, a, b):
        return x @ w + (x @ a) @ b

    # x @ w, x @ a and the adapter's part in the sum's own buffer
    assert peak(adapted, (B, D), (D, F), (D, R), (R, F)) == ROW * (F + F + R)


@pytest.mark.parametrize("after", [lambda y: y + 1, lambda y: y * 2])
def test_a_product_that_is_a_result_keeps_its_buffer(after):
    def two(x, w):
        y = x @ w
        return y, jnp.sum(jnp.tanh(after(y)))

    assert peak(two, (B, D), (D, F)) == ROW * F + 4


@pytest.mark.parametrize("readers", [1, 3, 5])
def test_halves_of_a_buffer_are_read_where_they_lie(readers):
    def gated(x, w):
        gate, up = jnp.split(x @ w, 2, axis=1)
        h = jnp.tanh(gate) * up
        return tuple(h + k for k in range(readers))

    # with many readers it costs less to keep h than to read both halves for each; the product is free then
    alive = 2 * F + readers * F if readers < 5 else readers * F
    assert peak(gated, (B, D), (D, 2 * F)) == ROW * alive


def test_the_backward_pass_of_a_gated_layer_keeps_two_buffers_of_it():
    def loss(x, w, v):
        gate, up = jnp.split(x @ w, 2, axis=1)
        return jnp.sum((jax.nn.silu(gate) * up) @ v)

    def layers(n):
        def total(x, w, v):
            return sum(loss(x + k, w, v) for k in range(n))

        return peak(jax.grad(total, argnums=(1, 2)), (B, D), (D, 2 * F), (F, D))

    # for each layer more: both halves, and what goes into the second product
    assert layers(9) - layers(8) <= ROW * (2 * F + F + D) + 4 * 3 * D * F


def test_attention_weights_are_made_again_from_the_scores():
    T = 64

    def loss(q_HxTxD, k_HxTxD):
        scores_HxTxT = jnp.einsum("htd,hsd->hts", q_HxTxD, k_HxTxD)
        weights_HxTxT = jax.nn.softmax(scores_HxTxT).astype(jnp.bfloat16)
        return jnp.sum(jnp.tanh(jnp.einsum("hts,hsd->htd", weights_HxTxT, k_HxTxD)))

    def layers(n):
        def total(q_HxTxD, k_HxTxD):
            return sum(loss(q_HxTxD + k, k_HxTxD) for k in range(n))

        return peak(jax.grad(total, argnums=(0, 1)), (2, T, D), (2, T, D))

    # for each layer more: the scores, queries and outputs, a maximum and a sum a row; weights would be half the scores
    assert 0 <= layers(9) - layers(8) - 4 * 2 * T * T <= 4 * 2 * T * (2 * D + 2)


def test_what_a_batched_product_reads_from_several_buffers_is_put_into_one():
    def over_both(q_HxTxD, k_HxTxD, more_HxTxD):
        both_HxSxD = jnp.concatenate([k_HxTxD, more_HxTxD], axis=1)
        return jnp.einsum("htd,hsd->hts", q_HxTxD, both_HxSxD)

    H, T, shape = 2, 4, (2, 4, D)
    assert peak(over_both, shape, shape, shape) == 4 * H * (2 * T * D + T * 2 * T)
