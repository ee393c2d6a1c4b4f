"""Budgets chosen by context: against trying everything, and where what is best is known."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.errors import ConfigError, DataError
from launch import oracle
from launch.oracle import allocate


def concave(drawn):
    """Gains whose steps become less and less worth a token: all of them are on the hull."""
    return np.cumsum([0.0, *sorted(drawn, reverse=True)])


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=2), min_size=1, max_size=4),
    st.integers(0, 8),
)
def test_equal_steps_are_taken_as_trying_everything_would(drawn, budget):
    gain_CxR = np.array([concave(row) for row in drawn])
    cost_CxR = np.broadcast_to(np.arange(3.0), gain_CxR.shape)
    choice_C = allocate(gain_CxR, cost_CxR, budget)
    everything, rows = itertools.product(range(3), repeat=len(drawn)), np.arange(len(drawn))
    best = max(gain_CxR[rows, list(c)].sum() for c in everything if sum(c) <= budget)
    assert choice_C.sum() <= budget
    assert gain_CxR[rows, choice_C].sum() == best


def test_a_choice_below_the_hull_is_passed_over_and_what_gains_nothing_is_not_bought():
    gain_CxR = np.array([[0.0, 0.1, 3.0], [1.0, 1.0, 0.5]])
    cost_CxR = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    assert allocate(gain_CxR, cost_CxR, 8).tolist() == [2, 0]
    assert allocate(gain_CxR, cost_CxR, 4).tolist() == [0, 0]


def write(tmp_path, f1_of, contexts=40, questions=6):
    """Write predictions at 1 to 32 of contexts of which each half needs another budget."""
    at = []
    for ratio in (1, 2, 8, 32):
        rows = [
            {
                "id": f"{context}-{i}",
                "context_id": context,
                "context_tokens": 320,
                "f1": f1_of(context, ratio),
                "score": 0.2 if context % 2 else 0.8,
            }
            for context in range(contexts)
            for i in range(questions)
        ]
        file = tmp_path / f"at_{ratio}.json"
        file.write_text(json.dumps(rows))
        at += ["--at", f"{ratio}={file}"]
    return at


def test_budget_goes_where_it_is_needed(tmp_path, capsys):
    """Even contexts answer at any ratio, odd ones only at 2: four times as many entries."""
    at = write(tmp_path, lambda context, ratio: float(context % 2 == 0 or ratio <= 2))
    oracle.main([*at, "--uniform", "8"])
    result = json.loads(capsys.readouterr().out)
    assert result["f1"] == {"32": 0.5, "8": 0.5, "2": 1.0, "1": 1.0}
    # All take 10 entries at 32, which leaves 1,200 of 1,600: 8 of the odd ones get 150 more.
    assert result["won"]["oracle"]["difference"] == pytest.approx(0.2)
    low, high = result["won"]["oracle"]["interval"]
    assert 0 < low < 0.2 < high
    assert result["won"]["the scored half known"]["difference"] == pytest.approx(0.2)
    assert abs(result["won"]["at random"]["difference"]) < 0.15
    assert all(one["share of the entries"] <= 1 for one in result["won"].values())
    half = next(row for row in result["reread"] if row["threshold"] == 0.5)
    assert half == {"threshold": 0.5, "from entries": 0.5, "f1": 1.0, "of all entries'": 1.0}


def test_where_nothing_is_known_beforehand_nothing_is_won(tmp_path, capsys):
    """Questions right by chance: what half of them tell is nothing about the others."""
    rng = np.random.default_rng(1)
    at = write(tmp_path, lambda *_: float(rng.random() < 0.5))
    oracle.main([*at, "--uniform", "8"])
    won = json.loads(capsys.readouterr().out)["won"]
    low, high = won["oracle"]["interval"]
    assert low < 0.03 and won["the scored half known"]["difference"] > 0.1


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (["--at", "8"], ConfigError, "RATIO=FILE"),
        (["--at", "4=x.json", "--at", "2=x.json"], ConfigError, "--uniform=8"),
        (["--at", "8=x.json", "--at", "2=x.json"], DataError, "evaluate again"),
    ],
)
def test_what_is_missing_is_told(given, error, says):
    with pytest.raises(error, match=says):
        oracle.main(given)


def test_other_questions_are_refused(tmp_path):
    at = write(tmp_path, lambda *_: 1.0, contexts=2)
    rows = json.loads((tmp_path / "at_2.json").read_text())
    (tmp_path / "at_2.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(DataError, match="other questions"):
        oracle.main(at)
