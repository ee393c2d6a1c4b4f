"""EM and F1 against values worked out by hand from the official script's rules, against those rules
written anew, and against torchmetrics.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.data.example import Example
from gistjax.errors import ConfigError
from gistjax.evaluation.metrics import (
    METRICS,
    Score,
    check_metrics,
    exact_match,
    f1,
    normalize_answer,
    score,
)
from tests.helpers.official import official


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, a dog & an owl!", "cat dog owl"),
        ("THE", ""),
        ("a", ""),
        ("", ""),
        ("...", ""),
        ("U.S.A.", "usa"),  # punctuation goes before articles: `a` of U.S.A. is no article
        ("A.", ""),
        ("a-b", "ab"),
        ("another theory", "another theory"),
        ("\ta\u00a0cat\u2003sat\n", "cat sat"),  # every Unicode space parts words
        ("“quoted”", "“quoted”"),  # only ASCII punctuation is stripped
        ("$5.5 million", "55 million"),
        ("it's", "its"),
        ("the_end", "theend"),
        ("É a É", "é é"),
        ("aé", "aé"),
        ("\u0130", "i\u0307"),
        ("naïve—the end", "naïve— end"),  # a dash is a word boundary
    ],
)
def test_normalize(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "golds", "em", "score"),
    [
        ("the Cat.", ["cat"], 1, 1),
        ("cat", ["dog", "A cat"], 1, 1),
        ("black cat", ["cat"], 0, 2 / 3),
        ("cat", ["black cat", "small black cat"], 0, 2 / 3),  # the best gold counts, not the first
        ("cat cat", ["cat"], 0, 2 / 3),  # repeated words count once
        ("cat dog", ["dog cat"], 0, 1),  # order does not matter to F1
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("", [""], 1, 1),  # v2.0: no word is right, for F1 too, where the gold answers have none
        ("the", ["a"], 1, 1),
        ("...", ["The", "an"], 1, 1),
        ("cat", ["the"], 0, 0),
        ("", ["", "cat"], 0, 0),  # … and only there: a gold without a word does not count
        ("", [], 1, 1),  # the text does not say
        ("cat", [], 0, 0),
        ("USA", ["United States", "USA", "U.S."], 1, 1),
        (" cat\n", ["\u00a0cat "], 1, 1),
        ("in 1850", ["1850", "around 1850"], 0, 2 / 3),
        ("a b c d", ["b c"], 0, 0.8),  # `a` is dropped
        ("ＣＡＴ", ["cat"], 0, 0),  # full-width letters stay what they are
        ("İ", ["i̇"], 1, 1),
    ],
)
def test_scores(prediction, golds, em, score):
    assert exact_match(prediction, golds) == em
    assert f1(prediction, golds) == pytest.approx(score)
    assert METRICS["squad"](prediction, golds) == Score(f1(prediction, golds), em)


WORDS = st.lists(
    st.sampled_from(
        ["the", "a", "an", "cat", "Cat", "dog", "x.", "-", "É", "1850", "\u00a0", "U.S."]
    ),
    max_size=6,
).map(" ".join) | st.text(max_size=8)


@given(prediction=WORDS, golds=st.lists(WORDS, min_size=1, max_size=4))
def test_properties(prediction, golds):
    em, score = exact_match(prediction, golds), f1(prediction, golds)
    assert em in (0.0, 1.0) and 0 <= score <= 1
    golds = list(filter(normalize_answer, golds)) or [""]
    assert score == max(f1(prediction, [gold]) for gold in golds)
    assert em == max(exact_match(gold, [prediction]) for gold in golds)  # symmetric
    assert score == 1 if em else score < 1 or len(prediction.split()) > 1


@settings(max_examples=300)
@given(prediction=WORDS, golds=st.lists(WORDS, max_size=4))
def test_the_official_rules_agree(prediction, golds):
    assert METRICS["squad"](prediction, golds) == pytest.approx(official(prediction, golds))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(prediction=WORDS, golds=st.lists(WORDS, min_size=1, max_size=4))
def test_torchmetrics_agrees(prediction, golds):
    squad = pytest.importorskip(
        "torchmetrics.functional.text", reason="torchmetrics is not installed"
    ).squad
    golds = list(filter(normalize_answer, golds)) or [""]  # the script does so, torchmetrics not
    theirs = squad(
        [{"prediction_text": prediction, "id": "q"}],
        [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "q"}],
    )
    assert 100 * exact_match(prediction, golds) == pytest.approx(float(theirs["exact_match"]))
    assert 100 * f1(prediction, golds) == pytest.approx(float(theirs["f1"]), abs=1e-3)


def test_each_example_is_scored_by_its_own_metric(monkeypatch):
    monkeypatch.setitem(METRICS, "length", lambda text, golds: Score(len(text) / 10, 0.0))
    examples = [Example("a", "", "A cat.", "Who?", ("cat",), 0, metric=name) for name in METRICS]
    found = score(["the cat", "the cat"], examples, samples=10, seed=0)
    assert found.f1_N.tolist() == [1.0, 0.7] and found.em_N.tolist() == [1.0, 0.0]
    assert (found.f1, found.em, found.n) == (0.85, 0.5, 2)


def test_intervals_are_of_contexts_for_f1_and_em_each():
    # By context F1 is 4/9 and 1, EM 0 and 1; a resample has one, or both by their sizes.
    examples = [Example(f"{i}", "", "", "", ("cat sat",), i // 3) for i in range(6)]
    found = score(["cat", "x", "sat", "cat sat", "Cat sat.", "the cat sat"], examples, 400, 0)
    assert found.f1_N == pytest.approx([2 / 3, 0, 2 / 3, 1, 1, 1])
    assert found.em_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.f1 == pytest.approx(13 / 18) and found.f1_interval == pytest.approx((4 / 9, 1))
    assert found.em == 0.5 and found.em_interval == (0, 1)
    assert found.clusters_N.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("bad", [Score(float("nan"), 0.0), Score(50.0, 1.0), Score(0.5, -1.0)])
def test_what_is_no_score_is_refused_with_its_metric(monkeypatch, bad):
    monkeypatch.setitem(METRICS, "odd", lambda text, golds: bad)
    examples = [Example("q1", "", "A cat.", "Who?", ("cat",), 0, metric="odd")]
    with pytest.raises(ConfigError, match=r"'odd' gave q1 F1 .* must be in 0\.\.1"):
        score(["cat"], examples, samples=10, seed=0)


def test_one_question_has_an_interval():
    found = score(["cat"], [Example("q1", "", "A cat.", "Who?", ("a cat sat",), 0)], 10, 0)
    assert found.f1_interval == pytest.approx((2 / 3, 2 / 3)) and found.em_interval == (0, 0)


def test_an_unknown_metric_is_refused_with_the_task_that_names_it():
    example = Example("a", "", "A cat.", "Who?", ("cat",), 0, task="notes", metric="sqad")
    with pytest.raises(ConfigError, match=r"'notes' is scored by 'sqad'.*did you mean 'squad'"):
        check_metrics([example])
