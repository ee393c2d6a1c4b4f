"""Packed entries: windows of codes are those of the numbers that they stand for."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.compress.kept import Entries, packed
from gistjax.compress.rounded import coded_entries, restore_entries, round_entries
from gistjax.model.kv_cache import PackedEntries
from gistjax.runtime.quantize import BITS

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)


def both(rng, count_LxK, H, bits, dtype):
    """Entries as codes and as a file gives them back, packed."""
    k, v = rng.normal(size=(2, count_LxK.sum(), H)).astype(dtype) * 3
    arrays, name = round_entries(Entries(k, v, count_LxK), bits), np.dtype(dtype).name
    back = restore_entries(arrays, bits, name)
    of_file = coded_entries(arrays, bits, name), Entries(back["k"], back["v"], count_LxK)
    return (jax.tree.map(jnp.asarray, packed(entries)) for entries in of_file)


@jax.jit
def windows(entries, layer):
    return entries.layer(layer).windows(jnp.ones(3))


def assert_same_to_the_last_bit(ours, theirs):
    mask = np.asarray(theirs.mask_BxKxX)
    np.testing.assert_array_equal(ours.mask_BxKxX, mask)
    for x, y in ((ours.k, theirs.k), (ours.v, theirs.v)):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x)[mask], np.asarray(y)[mask])
        assert np.isfinite(np.asarray(x).astype(np.float32)).all(), "masked ones are read with 0"


@pytest.mark.slow
@given(st.sampled_from(BITS), st.sampled_from(DTYPES), st.integers(1, 21), st.data())
@settings(max_examples=20)
def test_windows_of_codes_are_the_numbers_of_the_file(bits, dtype, H, data):
    counts = data.draw(st.lists(st.integers(0, 20), min_size=6, max_size=6))
    count_LxK = np.array(counts, np.int32).reshape(3, 2)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ours, theirs = both(rng, count_LxK, H, bits, dtype)
    for layer in range(3):
        assert_same_to_the_last_bit(windows(ours, layer), windows(theirs, layer))


@pytest.mark.parametrize("bits", BITS)
def test_rows_may_read_contexts_of_their_own(rng, bits):
    """Of two contexts; entries and ranges stand by layer, then context."""
    count_LxExK = np.array([[[3, 0], [1, 4]], [[2, 2], [0, 5]]], np.int32)
    flat = both(rng, count_LxExK.reshape(2, 4), 8, bits, np.float32)
    ours, theirs = (
        PackedEntries(
            x.k_TxH, x.v_TxH, *(t.reshape(2, 2, 2) for t in (x.start, x.count)), most=x.most
        )
        for x in flat
    )
    for layer in range(2):
        found = windows(ours, layer)
        assert found.k.shape == (2, 2, ours.most, 8)
        np.testing.assert_array_equal(found.mask_BxKxX.sum(-1), count_LxExK[layer])
        assert_same_to_the_last_bit(found, windows(theirs, layer))
