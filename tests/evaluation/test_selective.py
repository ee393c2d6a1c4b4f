"""Scores of answers: coverage against accuracy by brute force, and what must not change it."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gistjax.evaluation.selective import (
    Coverage,
    accuracy_area,
    auroc,
    calibration_error,
    f1_by_coverage,
)

LEVELS = st.integers(-3, 3)  # few, so that there are ties
ANSWERS = st.lists(st.tuples(LEVELS, st.integers(0, 1)), min_size=1, max_size=6)
MANY = st.lists(st.tuples(st.floats(-50, 0), st.integers(0, 1)), min_size=2, max_size=40)


def brute_force(answers):
    """The mean over every order that the scores allow, of the mean accuracy of its beginnings."""
    areas = []
    for order in permutations(answers):
        scores = [score for score, _ in order]
        if scores == sorted(scores, reverse=True):
            parts = [order[:k] for k in range(1, len(order) + 1)]
            areas.append(sum(Fraction(sum(r for _, r in p), len(p)) for p in parts) / len(parts))
    return float(sum(areas) / len(areas))


@given(ANSWERS)
def test_the_area_is_what_all_orders_give(answers):
    assert accuracy_area(*zip(*answers, strict=True)) == pytest.approx(brute_force(answers))


@given(ANSWERS, st.data())
def test_an_answer_that_counts_twice_is_two(answers, data):
    counts = data.draw(st.lists(st.integers(0, 2), min_size=len(answers), max_size=len(answers)))
    assume(0 < sum(counts) <= 6)
    repeated = [one for one, n in zip(answers, counts, strict=True) for _ in range(n)]
    area = Coverage(*zip(*answers, strict=True)).area(counts)
    assert area == pytest.approx(brute_force(repeated))


@given(MANY)
def test_only_the_order_counts_and_a_perfect_one_is_the_best(answers):
    scores, right = map(np.array, zip(*answers, strict=True))
    _, ranks = np.unique(scores, return_inverse=True)
    area, separation = accuracy_area(scores, right), auroc(scores, right)
    for changed in (ranks, 3 * ranks - 7, 2.0**ranks, np.arctan(ranks)):
        assert accuracy_area(changed, right) == pytest.approx(area)
        assert auroc(changed, right) == (separation and pytest.approx(separation))
    order = np.random.default_rng(0).permutation(len(scores))
    assert accuracy_area(scores[order], right[order]) == pytest.approx(area)
    best, worst = accuracy_area(right, right), accuracy_area(-right, right)
    assert worst - 1e-12 <= area <= best + 1e-12
    assert accuracy_area(np.zeros(len(right)), right) == pytest.approx(right.mean())
    if separation is not None:
        assert (auroc(right, right), auroc(-right, right), auroc(0 * right, right)) == (1, 0, 0.5)


def test_the_area_by_hand():
    # In the order right, wrong, right the accuracies are 1, 1/2 and 2/3.
    assert accuracy_area([0.9, 0.5, 0.1], [1, 0, 1]) == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)


@given(ANSWERS)
def test_the_area_is_the_mean_over_all_coverages(answers):
    coverage = Coverage(*zip(*answers, strict=True))
    each = [coverage.at(n) for n in range(1, len(answers) + 1)]
    assert np.mean(each) == pytest.approx(coverage.area())
    assert each[-1] == pytest.approx(np.mean([right for _, right in answers]))


def rows(scores, f1s, **more):
    return [{"score": score, "f1": f1, **more} for score, f1 in zip(scores, f1s, strict=True)]


SURE = rows(np.linspace(0.1, 0.9, 40), np.arange(40) / 39)  # the surer, the better


def test_f1_by_coverage_is_that_of_the_surest():
    found = f1_by_coverage(SURE, (1.0, 0.9, 0.5, 0.25, 0.2), f1=0.5)
    assert list(found) == [1.0, 0.9, 0.5, 0.25], "of 8 answers no mean is told"
    for share, f1 in found.items():
        assert f1 == pytest.approx(np.mean([row["f1"] for row in SURE[-round(40 * share) :]]))


def test_of_a_mixture_each_task_answers_the_share_and_counts_the_same():
    other = rows(np.linspace(0.01, 0.09, 20), [0.0] * 10 + [1.0] * 10, task="b")
    found = f1_by_coverage([{**row, "task": "a"} for row in SURE] + other, (0.5, 1.0), f1=0.5)
    assert found == {0.5: pytest.approx((59 / 78 + 1) / 2), 1.0: pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("made", "f1"),
    [
        ([], 0.5),
        (SURE[:1], 0.0),
        (SURE[:10], np.mean([row["f1"] for row in SURE[:10]])),
        (rows([0.3] * 40, np.arange(40) / 39), 0.5),
        ([*SURE[:-1], {"f1": 1.0}], 0.5),
        ([*SURE[:-1], {**SURE[-1], "withheld": "Ada"}], 0.5),
        (SURE[:-1], 0.5),
    ],
    ids=["none", "one", "ten", "equal", "unscored", "withheld", "samples"],
)
def test_where_there_is_nothing_to_choose_by_there_is_no_coverage(made, f1):
    assert f1_by_coverage(made, (0.25, 0.5, 1.0), f1) == {}


@given(ANSWERS)
def test_auroc_counts_pairs(answers):
    pairs = [(a > b) + (a == b) / 2 for a, x in answers for b, y in answers if x > y]
    scores, right = zip(*answers, strict=True)
    assert auroc(scores, right) == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_probabilities_that_are_met_have_no_error(rng):
    p = rng.random(40_000)
    right = rng.random(40_000) < p
    assert calibration_error(p, right) < 0.01
    assert calibration_error(np.sqrt(p), right) == pytest.approx(np.mean(np.sqrt(p) - p), abs=0.01)
    assert calibration_error([0.75] * 4, [1, 1, 1, 0]) < 1, "fewer answers than parts"
