"""Budgets: how many entries each KV head keeps, and which."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.compress import spread as budgets
from gistjax.compress.kept import Entries, packed, size_class
from gistjax.compress.spread import PROFILE_RATIOS, keep_parts, shares_at

L, B, K, C = 2, 3, 2, 12
keep = jax.jit(budgets.keep, static_argnames="spread")
whole_parts, count_at = jax.jit(budgets.whole_parts), jax.jit(budgets.count_at)
lengths = st.lists(st.integers(1, C), min_size=B, max_size=B)


def reference(score_LxKxC, length, total, spread):
    """Entries (layer, KV head, position) that are kept, by sorting them one by one."""
    shared = {"head": 2, "layer": 1, "all": 0}[spread]  # axes that a budget is for one place of
    n = total // (L * K, L, 1)[2 - shared]
    kept = set()
    for group in itertools.product(*(range(size) for size in (L, K)[:shared])):
        places = [
            (-score_LxKxC[place], *place)
            for place in itertools.product(range(L), range(K), range(length))
            if place[:shared] == group
        ]
        kept |= {place[1:] for place in sorted(places)[:n]}
    return kept


SPREADS = st.sampled_from(["head", "layer", "all"])


@given(lengths, st.integers(0, L * K * C), SPREADS, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_best_are_kept_and_the_first_of_equal_ones(lengths, total, spread, seed):
    score = np.random.default_rng(seed).integers(0, 6, (L, B, K, C)).astype(np.float32)
    totals = np.minimum(total, L * K * np.array(lengths)).astype(np.int32)
    kept = np.asarray(
        keep(jnp.asarray(score), jnp.asarray(lengths), jnp.asarray(totals), spread).kept
    )
    for row, n in enumerate(lengths):
        found = {tuple(int(i) for i in place) for place in np.argwhere(kept[:, row])}
        assert found == reference(score[:, row], n, totals[row], spread)


@given(lengths, st.floats(1, 20), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_whole_parts_fill_the_budget(lengths, ratio, seed):
    share = np.random.default_rng(seed).exponential(size=(L, B, K)).astype(np.float32) ** 3
    length = np.array(lengths, np.int32)
    total = (L * K * np.ceil(length / ratio)).astype(np.int32)
    parts = np.asarray(whole_parts(jnp.asarray(share), jnp.asarray(length), jnp.asarray(total)))
    np.testing.assert_array_equal(parts.sum((0, 2)), np.minimum(total, L * K * length))
    assert (parts >= 0).all() and (parts <= length[None, :, None]).all()
    for row in range(B):  # a KV head with a larger share never keeps less
        order = np.argsort(share[:, row].ravel())
        assert (np.diff(parts[:, row].ravel()[order]) >= 0).all()


@given(lengths, st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_counts_at_every_ratio_are_those_of_what_is_kept(lengths, seed):
    score = np.random.default_rng(seed).integers(-3, 3, (L, B, K, C)).astype(np.float32)
    counts = count_at(jnp.asarray(score), jnp.asarray(lengths))
    for ratio, count_LxBxK in zip(PROFILE_RATIOS, counts, strict=True):
        total = (L * K * np.ceil(np.array(lengths) / ratio)).astype(np.int32)
        kept = keep(jnp.asarray(score), jnp.asarray(lengths), jnp.asarray(total), "all").kept
        np.testing.assert_array_equal(count_LxBxK, kept.sum(-1))


def test_whole_parts_by_hand():
    share = jnp.asarray([[[0.5, 0.25]], [[0.125, 0.125]]])  # of 8 entries 4, 2, 1, 1
    parts = whole_parts(share, jnp.array([10]), jnp.array([8]))
    np.testing.assert_array_equal(parts[:, 0], [[4, 2], [1, 1]])
    parts = whole_parts(share, jnp.array([3]), jnp.array([8]))  # none beyond the length
    np.testing.assert_array_equal(parts[:, 0], [[3, 3], [1, 1]])
    score = jnp.arange(2.0 * 2 * 3).reshape(2, 1, 2, 3)
    kept = keep_parts(score, jnp.array([3]), jnp.array([[[2, 0]], [[3, 1]]])).kept
    np.testing.assert_array_equal(kept[:, 0], [[[0, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 1]]])


def test_shares_are_interpolated_over_the_logarithm():
    profile = jnp.asarray(1 / np.array(PROFILE_RATIOS))[None, None]
    found = shares_at(profile, jnp.array([1.0, 4.0, 2**0.5, 64.0, 100.0, 0.5]))[0, :, 0]
    np.testing.assert_allclose(found, [1, 0.25, 0.75, 1 / 64, 1 / 64, 1], rtol=1e-6)


@given(st.integers(1, 100_000))
def test_size_classes(n):
    size = size_class(n)
    assert n <= size <= max(16, n * 17 / 16 + 1) and size_class(size) == size


@pytest.mark.parametrize("skew", [0, 1, 8])
@pytest.mark.parametrize("tokens", [60, 171, 434, 4000])
@pytest.mark.parametrize("ratio", [2, 8, 32])
def test_padding_of_packed_entries_is_at_most_a_tenth_however_unequal_heads_are(
    skew, tokens, ratio, rng
):
    """And shapes are few: sixteen lengths to a doubling, and a power of two for a KV head."""
    for L, K in ((30, 3), (32, 8)):
        share = jnp.asarray(rng.uniform(0, 1, (L, 1, K)) ** skew)
        total = jnp.array([L * K * -(-tokens // ratio)])
        count = np.asarray(whole_parts(share, jnp.array([tokens]), total))[:, 0]
        entry = np.zeros((count.sum(), 1), np.float16)
        found = packed(Entries(entry, entry, count))
        n, T, X = int(total[0]), len(found.k_TxH), found.most
        assert n == count.sum() <= T <= 1.1 * n
        assert count.max() <= X <= max(16, 2 * count.max()) and X & (X - 1) == 0 and X <= T
        held = sum(x.nbytes for x in jax.tree.leaves(found))
        assert held - found.k_TxH.nbytes - found.v_TxH.nbytes == 2 * 4 * L * K
