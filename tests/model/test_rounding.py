"""Rounding within a program: the numbers that files give back, and gradients that pass."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gistjax.compress.context import CompressedContext
from gistjax.compress.kept import entries_of
from gistjax.compress.rounded import restore_entries, round_entries
from gistjax.model.kv_cache import KeptLayer
from gistjax.model.rounding import AS_THEY_ARE, as_stored
from gistjax.runtime.quantize import BITS

E, N, K, X, H = 2, 6, 3, 11, 8
WIDTHS = np.resize((*BITS, AS_THEY_ARE), E * N).astype(np.int32)


def layer(rng, dtype, scale=1.0):
    """Two contexts that six rows each read, each row its own part; a KV head of row 0 keeps none,
    one of row 1 a single entry.
    """
    k, v = (scale * rng.normal(size=(E, K, X, H)) for _ in range(2))
    k[:, :, :, [1, 5]] += 50 * scale
    v[:, :, 0] *= 1e-5
    v[:, :, 1] = 0.25
    mask = rng.random((E * N, K, X)) < 0.6
    mask[0, 1] = mask[1, 2] = False
    mask[1, 2, 4] = True
    k, v = (jnp.asarray(x.astype(np.float32)).astype(dtype) for x in (k, v))
    return KeptLayer(k, v, jnp.asarray(mask), bits_B=jnp.asarray(WIDTHS))


def on_the_host(kept, row):
    """Keys and values of a row as a file has them, `[entries, H]`."""
    rows = KeptLayer(
        *(np.repeat(np.asarray(x), N, axis=0) for x in (kept.k, kept.v)),
        np.asarray(kept.mask_BxKxX),
    )
    given = entries_of(CompressedContext(*(None,) * 8, kept=(rows,)), row)
    bits = int(WIDTHS[row])
    if bits == AS_THEY_ARE:
        return given.k_TxH, given.v_TxH
    back = restore_entries(round_entries(given, bits), bits, given.k_TxH.dtype.name)
    return back["k"], back["v"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 37.0])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_each_row_reads_what_its_file_would_hold_to_the_last_bit(rng, dtype, scale):
    kept = layer(rng, dtype, scale)
    read = jax.jit(as_stored)(kept)
    assert read.k.dtype == read.v.dtype == dtype
    for row in range(E * N):
        own = np.asarray(kept.mask_BxKxX)[row]
        for ours, given, theirs in zip(
            (read.k, read.v), (kept.k, kept.v), on_the_host(kept, row), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(ours)[row][own], theirs)
            np.testing.assert_array_equal(
                np.asarray(ours)[row][~own], np.asarray(given)[row // N][~own]
            )


def test_the_gradient_passes_as_if_nothing_were_rounded(rng):
    kept = layer(rng, np.float32)
    weights = jnp.asarray(rng.normal(size=(2, E * N, K, X, H)), jnp.float32)

    def total(k, v):
        read = as_stored(KeptLayer(k, v, kept.mask_BxKxX, bits_B=kept.bits_B))
        return jnp.sum(read.k * weights[0]) + jnp.sum(read.v * weights[1])

    slopes = jax.jit(jax.grad(total, (0, 1)))(kept.k, kept.v)
    for slope, w in zip(slopes, weights, strict=True):
        np.testing.assert_allclose(slope, w.reshape(E, N, K, X, H).sum(1), rtol=1e-5, atol=1e-5)


def test_rows_may_share_a_mask_and_its_gate(rng):
    kept = layer(rng, np.float32)
    mask, gate = kept.mask_BxKxX[::N], jnp.asarray(rng.random((E, K, X)), jnp.float32)
    shared = KeptLayer(kept.k, kept.v, mask, gate, kept.bits_B)
    rows = (jnp.repeat(x, N, axis=0) for x in (mask, gate))
    apart = KeptLayer(kept.k, kept.v, *rows, kept.bits_B)
    chex.assert_trees_all_equal(as_stored(shared), as_stored(apart))
