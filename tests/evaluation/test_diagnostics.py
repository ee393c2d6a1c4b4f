"""Cosines against a loop over all pairs, and shares of answers by hand."""

import itertools
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gistjax.evaluation.diagnostics import answer_diversity, slot_similarity


def looped(slots_BxMxD, slots_B):
    """Both means, pair by pair."""
    used = [
        (b, m, x / np.linalg.norm(x))
        for b, n in enumerate(slots_B)
        for m, x in enumerate(slots_BxMxD[b, :n].astype(np.float64))
        if np.isfinite(x).all() and x.any()
    ]
    cosines = {"within": [], "between": []}
    for (b, m, x), (c, n, y) in itertools.combinations(used, 2):
        if b == c:
            cosines["within"].append(x @ y)
        elif m == n:
            cosines["between"].append(x @ y)
    return {key: float(np.mean(values)) if values else None for key, values in cosines.items()}


@given(st.data())
def test_against_a_loop_over_pairs(data):
    B, M, D = (data.draw(st.integers(1, most)) for most in (4, 4, 3))
    elements = st.sampled_from([-2.0, -0.5, 0.0, 0.0, 1.0, 3.0, 1e30, np.nan, np.inf])
    slots_BxMxD = data.draw(hnp.arrays(np.float32, (B, M, D), elements=elements))
    slots_B = data.draw(hnp.arrays(np.int32, B, elements=st.integers(0, M)))
    found, expected = slot_similarity(slots_BxMxD, slots_B), looped(slots_BxMxD, slots_B)
    assert found == pytest.approx(expected, abs=1e-9)
    json.dumps(found, allow_nan=False)


def test_collapsed_contexts_and_collapsed_slots_are_told_apart():
    distinct_MxD = np.eye(3, 8)
    same_contexts = np.stack([distinct_MxD] * 4)
    assert slot_similarity(same_contexts, np.full(4, 3)) == pytest.approx(
        {"within": 0.0, "between": 1.0}
    )
    same_slots = np.repeat(np.eye(4, 8)[:, None], 3, axis=1)
    assert slot_similarity(same_slots, np.full(4, 3)) == pytest.approx(
        {"within": 1.0, "between": 0.0}
    )


def test_only_used_slots_count():
    slots_BxMxD = np.ones((2, 3, 4))
    slots_BxMxD[0, 2] = slots_BxMxD[1, 1:] = -1.0
    assert slot_similarity(slots_BxMxD, np.array([2, 1])) == {"within": 1.0, "between": 1.0}
    assert slot_similarity(slots_BxMxD, np.array([3, 3]))["within"] == pytest.approx(-1 / 3)


def test_no_pair_is_none():
    one = np.ones((1, 1, 4))
    assert slot_similarity(one, np.array([1])) == {"within": None, "between": None}
    assert slot_similarity(np.zeros((3, 3, 4)), np.full(3, 3)) == {"within": None, "between": None}
    assert slot_similarity(np.ones((2, 1, 4)), np.ones(2)) == {"within": None, "between": 1.0}
    assert slot_similarity(np.ones((1, 2, 4)), np.array([2])) == {"within": 1.0, "between": None}


def test_bfloat16_is_widened_before_it_is_summed(rng):
    slots_BxMxD = rng.normal(1.0, 1.0, (5, 6, 512)).astype(ml_dtypes.bfloat16)
    slots_B = np.array([6, 3, 1, 0, 5])
    exact = looped(slots_BxMxD.astype(np.float64), slots_B)
    assert slot_similarity(slots_BxMxD, slots_B) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    ("predictions", "golds", "expected"),
    [
        (["a cat", "The cat.", "CAT", "dog"], ["cat", "dog", "cow", "pig"], (0.5, 1.0, 0.0)),
        (["1850"] * 4, ["1850", "in 1850", "1850", "1850."], (0.25, 0.5, 0.0)),
        (["", "the", " ", "x"], ["x", "x", "y", "y"], (0.5, 0.5, 0.75)),
        ([""], ["x"], (1.0, 1.0, 1.0)),
        (["", "The", "y"], ["x"], (2 / 3, 1.0, 2 / 3)),
    ],
)
def test_diversity(predictions, golds, expected):
    names = ("predictions", "golds", "empty")
    assert answer_diversity(predictions, golds) == dict(zip(names, expected, strict=True))


def test_diversity_of_nothing():
    with pytest.raises(ValueError, match="above 0"):
        answer_diversity([], [])
