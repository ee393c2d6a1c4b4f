"""Bootstrap intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.evaluation import statistics
from gistjax.evaluation.statistics import clustered_bootstrap


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
