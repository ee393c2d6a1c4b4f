"""Kinds of answers by hand, places by construction, and means and intervals of groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.evaluation.breakdown import answer_place, answer_type, breakdown


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("22 October 2006", "date"),
        ("May", "date"),
        ("1887", "date"),
        ("between 1500 and 1850", "date"),
        ("Panic of 1901", "date"),
        ("1775–1795", "date"),
        ("the 1990s", "date"),
        ("'60s", "date"),
        ("19th century", "date"),
        ("nineteenth-century maps", "date"),
        ("First century", "date"),
        ("541 to 700 CE", "date"),
        ("AD 79", "date"),
        ("44 BC", "date"),
        ("180", "number"),  # no year: three digits are nearly always an amount
        ("16,000", "number"),
        ("1,500", "number"),
        ("1500.5 tonnes", "number"),
        ("$1500", "number"),
        ("$1.2 billion", "number"),
        ("1500%", "number"),
        ("55.1%", "number"),
        ("2150", "number"),
        ("10,000 m2", "number"),
        ("747s", "number"),
        ("three", "number"),
        ("Twelve", "number"),
        ("five seats", "number"),
        ("over a hundred dollars", "number"),
        ("five per cent", "number"),
        ("Article 102", "number"),
        ("Apollo 11", "number"),
        ("Leonardo da Vinci", "name"),
        ("the Dutch Republic", "name"),
        ("Society of St Pius X", "name"),
        ('"Bauffet\'s Point"', "name"),
        ("Michael E. Mann and Malcolm K. Hughes", "name"),
        ("Dürer", "name"),
        ("Three Kingdoms", "name"),
        ("weight", "other"),
        ("international law", "other"),
        ("a body of water", "other"),
        ("often weightless", "other"),  # no number word stands in them on its own
        ("Puritan ministers", "other"),
        ("a dispute of two citizens with one another", "other"),
        ("may", "other"),
        ("the end of a century", "other"),
        ("the", "other"),
        ("", "other"),
        ("…", "other"),
    ],
)
def test_types(answer, kind):
    assert answer_type(answer) == kind


@given(st.text(max_size=30))
def test_every_text_has_a_type(answer):
    assert answer_type(answer) in {"date", "number", "name", "other"}
    assert answer_type(f"{answer} 7") in {"date", "number"}


@given(
    before=st.lists(st.sampled_from(["so", "wir", "hier"]), max_size=30),
    after=st.lists(st.sampled_from(["so", "wir", "hier"]), max_size=30),
    space=st.sampled_from([" ", "  ", "\n", " \t "]),
)
def test_places_are_thirds_of_the_text(before, after, space):
    start, length = sum(map(len, before)) + len(before), len(" ".join([*before, "x y", *after]))
    thirds = {0 <= start < length / 3: "first", start >= 2 * length / 3: "last"}
    context = space.join([*before, "x", "y", *after])
    assert answer_place(context, "x y") == thirds.get(True, "middle")
    assert answer_place(f" {context}\n", "x\ny ") == thirds.get(True, "middle")


@pytest.mark.parametrize(
    ("context", "answer", "place"),
    [
        ("abc", "a", "first"),
        ("a b c", "c", "last"),
        ("one two three", "Two", "absent"),
        ("one two three", "four", "absent"),
        ("one two three", "", "absent"),
        ("", "one", "absent"),
        ("two one two one two", "two", "first"),
        ("in 1945 there were many of them, namely 4", "4", "last"),  # not that of 1945
        ("in 1945 there were many of them", "194", "first"),  # no whole word: any occurrence
        ("in 1954 there were many of them, namely 4", "4", "last"),
        ("abc, but also a.c", "a.c", "last"),  # no pattern
        ("So what? (yes", "(yes", "last"),
    ],
)
def test_places(context, answer, place):
    assert answer_place(context, answer) == place


def test_groups_come_sorted_with_their_own_means_and_intervals():
    # `b`: two contexts with means 0 and 1, of which a resample draws both, or twice the same.
    found = breakdown(
        np.array([0.25, 0.0, 0.75, 1.0, 0.25]), ["c", "b", "a", "b", "c"], [1, 1, 2, 2, 3], 500, 0
    )
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == {"n": 1, "f1": 0.75, "f1_interval": [0.75, 0.75]}
    assert found["b"] == {"n": 2, "f1": 0.5, "f1_interval": [0.0, 1.0]}
    assert found["c"] == {"n": 2, "f1": 0.25, "f1_interval": [0.25, 0.25]}


def test_intervals_keep_contexts_together(rng):
    cluster_N = np.repeat(np.arange(100), 9)
    values_N = rng.random(100)[cluster_N]
    groups = ["all"] * 900
    low, high = breakdown(values_N, groups, cluster_N, 1_000, 0)["all"]["f1_interval"]
    low_1, high_1 = breakdown(values_N, groups, np.arange(900), 1_000, 0)["all"]["f1_interval"]
    assert (high - low) / (high_1 - low_1) == pytest.approx(3, rel=0.2)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from("abc"), st.integers(0, 4)),
        min_size=1,
        max_size=30,
    )
)
def test_groups_add_up_to_the_whole(rows):
    values, groups, clusters = zip(*rows, strict=True)
    found = breakdown(values, groups, clusters, 20, 0)
    assert set(found) == set(groups)
    assert sum(part["n"] for part in found.values()) == len(rows)
    assert sum(part["n"] * part["f1"] for part in found.values()) == pytest.approx(sum(values))
    for part in found.values():
        low, high = part["f1_interval"]
        assert -1e-9 <= low <= high <= 1 + 1e-9


@pytest.mark.parametrize(("groups", "clusters"), [(["a"], [1, 2]), (["a", "b"], [1])])
def test_wrong_lengths(groups, clusters):
    with pytest.raises(ValueError, match="must be"):
        breakdown([0.0, 1.0], groups, clusters, 10, 0)
