"""Bootstrap intervals, of means and of paired differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.evaluation import statistics
from gistjax.evaluation.statistics import clustered_bootstrap, paired_difference


def test_independent_values_give_the_normal_interval(rng):
    values_N = rng.normal(0.5, 0.2, 4_000)
    low, high = clustered_bootstrap(values_N, np.arange(4_000), samples=2_000, seed=0)
    half = 1.96 * values_N.std() / np.sqrt(4_000)
    assert low == pytest.approx(values_N.mean() - half, abs=half / 8)
    assert high == pytest.approx(values_N.mean() + half, abs=half / 8)


def test_clusters_widen_the_interval_by_the_root_of_their_size(rng):
    cluster_N = np.repeat(np.arange(400), 9)
    values_N = rng.random(400)[cluster_N]  # all values of a cluster are the same: only 400 draws
    low, high = clustered_bootstrap(values_N, cluster_N, 2_000, 0)
    naive_low, naive_high = clustered_bootstrap(values_N, np.arange(3_600), 2_000, 0)
    assert (high - low) / (naive_high - naive_low) == pytest.approx(3, rel=0.15)


def test_a_known_distribution():
    # Two clusters, means 0 and 1: a resample is 0, a mixture or 1 with probability 1/4, 1/2, 1/4.
    assert clustered_bootstrap([0, 0, 1, 1], ["a", "a", "b", "b"], 1_000, 0) == (0, 1)
    # Clusters keep their size: one row of 0 and three of 1 mix to 0.75, never to 0.5.
    assert clustered_bootstrap([0, 1, 1, 1], [5, 7, 7, 7], 1_000, 0) == (0, 1)
    assert clustered_bootstrap([0, 1], [3, 3], 100, 0) == (0.5, 0.5)


def test_clusters_count_by_their_size():
    # A resample of one row of 0 and three of 1 is 0, three quarters or 1, that of shares likewise.
    drawn = {clustered_bootstrap([0, 1, 1, 1], [5, 7, 7, 7], 1, seed) for seed in range(30)}
    assert drawn == {(0, 0), (0.75, 0.75), (1, 1)}
    drawn = {clustered_bootstrap([0, 2], [5, 7], 1, seed, of=[1, 3]) for seed in range(30)}
    assert drawn == {(0, 0), (0.5, 0.5), (2 / 3, 2 / 3)}


def test_the_interval_holds_95_percent():
    values_N = np.linspace(0, 1, 50)
    draws = [clustered_bootstrap(values_N, np.arange(50), 1, seed)[0] for seed in range(2_000)]
    low, high = clustered_bootstrap(values_N, np.arange(50), 20_000, 0)
    assert (np.array(draws) < low).mean() == pytest.approx(0.025, abs=0.01)
    assert (np.array(draws) > high).mean() == pytest.approx(0.025, abs=0.01)


def test_seeded_and_independent_of_labels_and_chunks(rng, monkeypatch):
    values_N, cluster_N = rng.random(300), rng.integers(40, size=300)
    one = clustered_bootstrap(values_N, cluster_N, 500, 3)
    assert clustered_bootstrap(values_N, 1_000 + 7 * cluster_N, 500, 3) == one
    assert clustered_bootstrap(values_N, cluster_N, 500, 4) != one
    monkeypatch.setattr(statistics, "_CHUNK", 1)
    assert clustered_bootstrap(values_N, cluster_N, 500, 3) == pytest.approx(one)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=40),
    samples=st.integers(1, 50),
)
def test_stays_within_the_values(rows, samples):
    values, clusters = zip(*rows, strict=True)
    low, high = clustered_bootstrap(values, clusters, samples, 0)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


@pytest.mark.parametrize(
    ("values", "clusters", "samples"), [([], [], 10), ([1, 2], [1], 10), ([1], [1], 0)]
)
def test_wrong_arguments(values, clusters, samples):
    with pytest.raises(ValueError, match="must be"):
        clustered_bootstrap(values, clusters, samples, 0)


def test_a_difference_of_normal_values(rng):
    hard_N = rng.normal(0, 0.3, 4_000)  # shared by both, so that it cancels
    a_N, b_N = hard_N + rng.normal(0.6, 0.05, 4_000), hard_N + rng.normal(0.5, 0.05, 4_000)
    found = paired_difference(a_N, b_N, np.arange(4_000), samples=2_000, seed=0)
    half = 1.96 * np.hypot(0.05, 0.05) / np.sqrt(4_000)
    assert found.mean == pytest.approx(0.1, abs=2 * half)
    assert found.interval[0] == pytest.approx(found.mean - half, abs=half / 8)
    assert found.interval[1] == pytest.approx(found.mean + half, abs=half / 8)


def test_a_known_difference():
    # By cluster, the differences are 1 and -1, so that a resample's is 1, 0 or -1.
    found = paired_difference([1, 1, 0, 0], [0, 0, 1, 1], ["a", "a", "b", "b"], 1_000, 0)
    assert found.mean == 0 and found.interval == (-1, 1)
    assert paired_difference([0.75, 0.5], [0.5, 0.25], [0, 1], 100, 0).interval == (0.25, 0.25)


def test_a_known_share():
    # By cluster, 1 of 2 and 1 of 1; a resample without anything to have a share of is left out.
    assert clustered_bootstrap([1, 1], [0, 1], 1_000, 0, of=[2, 1]) == (0.5, 1)
    assert clustered_bootstrap([1, 0], [0, 1], 1_000, 0, of=[4, 0]) == (0.25, 0.25)
    assert clustered_bootstrap([1, 1], [0, 1], 1_000, 0, of=[2, 0]) == (0.5, 1)


@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=40
    )
)
def test_a_difference_is_of_pairs_and_changes_its_sign(rows):
    a, b, clusters = zip(*rows, strict=True)
    one, other = (paired_difference(x, y, clusters, 50, 0) for x, y in ((a, b), (b, a)))
    assert one.mean == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)
    assert one.mean == pytest.approx(-other.mean, abs=1e-9)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-9)
    same = paired_difference(a, a, clusters, 50, 0)
    assert same.mean == 0 and same.interval == (0, 0)


@pytest.mark.parametrize(
    ("a", "b", "clusters"), [([1, 2], [1], [1, 2]), ([1, 2], [1, 2], [1]), ([], [], [])]
)
def test_a_difference_of_other_lengths(a, b, clusters):
    with pytest.raises(ValueError, match="must be"):
        paired_difference(a, b, clusters, 10, 0)
