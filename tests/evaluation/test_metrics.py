"""EM and F1 against values worked out by hand from the official script's rules, against those rules
written anew, and against torchmetrics.
"""

import re
from collections import Counter

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
    final_number,
    hotpotqa,
    normalize_answer,
    number,
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
    metrics = ("squad", "length")
    examples = [Example("a", "", "A cat.", "Who?", ("cat",), 0, metric=name) for name in metrics]
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


@pytest.mark.parametrize(
    ("prediction", "golds", "abstention", "right"),
    [
        ("not in the text", [], "not in the text", 1),
        ("Not in the text.", [], "not in the text", 1),
        ("", [], "not in the text", 1),
        ("the cat", [], "not in the text", 0),
        ("not in the text", ["cat"], "not in the text", 0),
        ("not in the text of cats", [], "not in the text", 0),
        ("The cat", ["cat"], "not in the text", 1),
        ("Unknown!", [], "unknown", 1),
        ("not in the text", [], "", 0),
        ("the", ["cat"], "", 0),
    ],
)
def test_saying_so_in_the_words_of_the_task_is_no_answer(prediction, golds, abstention, right):
    example = Example("a", "", "A cat.", "Who?", tuple(golds), 0, abstention=abstention)
    assert score([prediction], [example], 1, 0).em == right


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "em"),
    [
        ("Yes.", "yes", 1, 1),
        ("no", "yes", 0, 0),
        ("yes, it is", "yes", 0, 0),  # SQuAD's F1 would be 0.5
        ("yes", "yes it is", 0, 0),
        ("noanswer", "no answer", 0, 0),
        ("black cat", "the cat", 2 / 3, 0),
        ("", "the", 0, 1),  # as the script has it: no common word
    ],
)
def test_yes_and_no_are_right_whole_or_not_at_all(prediction, gold, f1, em):
    assert hotpotqa(prediction, [gold]) == Score(pytest.approx(f1), em)


def official_hotpotqa(prediction, gold):
    """The rules of `hotpot_evaluate_v1.py`, written anew."""
    ours, theirs = normalize_answer(prediction), normalize_answer(gold)
    em = float(ours == theirs)
    for text in (ours, theirs):
        if text in ("yes", "no", "noanswer") and ours != theirs:
            return 0.0, em
    common = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    if not common:
        return 0.0, em
    precision, recall = common / len(ours.split()), common / len(theirs.split())
    return 2 * precision * recall / (precision + recall), em


WORDS = st.lists(st.sampled_from(["yes", "no", "noanswer", "the", "cat", "dog."]), max_size=4)


@given(prediction=WORDS.map(" ".join), gold=WORDS.map(" ".join))
@settings(max_examples=100)
def test_hotpotqa_is_scored_by_the_official_rules(prediction, gold):
    assert hotpotqa(prediction, [gold]) == pytest.approx(official_hotpotqa(prediction, gold))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.00", 1234),
        ("It is $1,234.", 1234),
        ("2 + 3 = 5\n#### 5", 5),
        ("10-3", 3),
        ("10 - 3", 3),
        ("x=-3", -3),
        ("-$5", -5),
        ("(2)-1", 1),
        ("3, 4, 5,", 5),
        ("7.50%", 7.5),
        (".5 cups", 0.5),
        ("1,234,567 or 12", 12),
        ("$9{,}500 in all", 9500),
        ("it falls by \u22125", -5),
        ("\u2212$5", -5),
        ("8\u22125", 5),
        ("#### 72 clips in 2 months", 72),
        ("#### 72\n\nAnother problem of 3 parts\n#### 5", 72),
        ("4 cats\n#### none", 4),
        ("none", None),
        ("", None),
    ],
)
def test_the_final_number(text, value):
    assert final_number(text) == value


@pytest.mark.parametrize(
    ("prediction", "golds", "right"),
    [
        ("so 1,234.00 dollars", ["a\n#### 1234"], 1),
        ("1234 of 5", ["#### 1234"], 0),
        ("seven", ["7"], 0),
        ("7", ["seven"], 0),
        ("7.0", ["8", "7"], 1),
        ("7", [], 0),
    ],
)
def test_numbers_are_compared_by_value(prediction, golds, right):
    assert number(prediction, golds) == Score(right, right)


@given(value=st.integers(-(10**9), 10**9), style=st.sampled_from(["{}", "{:,}", "{}.00", "${}."]))
@settings(max_examples=100)
def test_numbers_are_read_as_the_usual_extraction_reads_them(value, style):
    """`#### (-?[0-9.,]+)` with `$`, commas and what is behind the point left out."""
    text = f"It takes 3 days.\n#### {style.format(value)}"
    usual = re.search(r"#### (-?[0-9.,]+)", text.replace("$", ""))[1].replace(",", "")
    assert final_number(text) == float(usual)


def test_questions_on_one_context_alone_are_drawn_themselves():
    examples = [Example(str(n), "", "A.", "B?", ("a b",), context_id=0) for n in range(8)]
    found = score(["a b", "c"] * 4, examples, samples=200, seed=0)
    assert found.em == 0.5 and found.em_interval[0] < 0.5 < found.em_interval[1]


def test_a_metric_that_returns_no_score_is_refused(monkeypatch):
    monkeypatch.setitem(METRICS, "hit", lambda prediction, golds: 1.0)
    example = Example("a", "", "A cat.", "Who?", ("cat",), 0, task="notes", metric="hit")
    with pytest.raises(ConfigError, match=r"'hit' of the task 'notes' returned 1.0.*as both"):
        check_metrics([example])
