"""Overlap of evaluation contexts with pretraining text."""

import json
import subprocess
import sys
import unicodedata

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from launch import contamination
from launch.contamination import longest_overlaps, words_of

SHORT = "Ada Byron built the mill at Esker in 1783."
GERMAN = (
    "Die Mühle – „Größe XII“ – gehörte dem Mu\u0308ller, der den Wasserfall in Köln-Ost\u00a0fand."
)
CHINESE = "\u54e5\u502b\u5e03\u572817\u4e16\u7d00\u5efa\u9020\u4e86\u9019\u5ea7\u78e8\u574a\u3002"
THAI = "\u0e01\u0e35\u0e49\u0e1a\u0e49\u0e32\u0e19\u0e42\u0e23\u0e07\u0e2a\u0e35"
HINDI = "\u092e\u093f\u0932 \u0915\u093f\u0938\u0928\u0947 \u092c\u0928\u093e\u0908"
CONTEXT = "The mill by the river was built in 1812, by Ada Holm and her two brothers."


@pytest.mark.parametrize(
    "article, words",
    [
        ("", 0),
        ("the mill by", 0),
        ("THE MILL, by the river: was not", 6),
        ("x " + CONTEXT + " y", 16),
        ("was built in 1812 by Ada Holm. The mill by the river", 7),
    ],
)
def test_longest_piece(article, words):
    assert longest_overlaps([CONTEXT, "something else"], [article], 4) == [words, 0]


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=30), st.integers(1, 4), st.data())
def test_a_piece_is_found_wherever_it_stands(words, n, data):
    first = data.draw(st.integers(0, len(words) - n))
    piece = " ".join(words[first : first + n])
    [longest] = longest_overlaps([" ".join(words)], ["z " + piece + " z"], n)
    assert n <= longest <= len(words)
    assert longest_overlaps([" ".join(words)], ["z " + " z ".join(words)], max(n, 2)) == [0]


def test_an_overlap_is_of_thirteen_words_unless_said_otherwise():
    values = flags.FlagValues()
    contamination.define_flags(values)
    values.mark_as_parsed()
    assert values.words == 13


def test_words():
    assert words_of("Héllo, W-orld… 12.5%") == ["héllo", "w", "orld", "12", "5"]
    assert words_of("__Bold__ ﬁve² STRASSE") == ["bold", "five2", "strasse"]
    assert words_of("İzmir Wasser\u00adfall e\u0301t\u200be\u0301") == [
        "izmir",
        "wasserfall",
        "été",
    ]
    assert words_of("水车，built 於1783。") == ["水", "车", "built", "於", "1783"]
    assert len(words_of(HINDI)) == 3, "vowel signs part no words"
    assert words_of("!? … 👍") == []


@pytest.mark.parametrize(
    ("context", "article"),
    [
        (SHORT, f"Before. {SHORT} After."),
        (SHORT, "before ada BYRON built the mill — at\u00a0Esker, in “1783”"),
        ("Yes.", "oh yes"),
        ("It's the miller's.", "it\u2019s the miller\u02bcs"),
        (GERMAN, unicodedata.normalize("NFD", GERMAN)),
        (unicodedata.normalize("NFD", GERMAN), f"x {unicodedata.normalize('NFC', GERMAN)} y"),
        (GERMAN, GERMAN.upper()),
        (GERMAN, GERMAN.replace("–", "--").replace("„", '"').replace("Wasser", "Wasser\u00ad")),
        (CHINESE, f"\u6211{CHINESE}\u4eba"),
        (CHINESE, "\n".join(words_of(CHINESE))),
        (CHINESE.replace("17", "\uff11\uff17"), CHINESE),
        (THAI, f"\u0e01{THAI}\u0e01"),
        (HINDI, f"x {HINDI} y"),
    ],
)
def test_paragraphs_that_are_short_unspaced_or_written_otherwise_are_seen(context, article):
    words = len(words_of(context))
    other = " ".join(words_of(article)[::-1]) if words > 1 else "no"
    assert longest_overlaps([context], [other, article], 13) == [words]
    assert longest_overlaps([context], [other], 13) == [0]


def test_a_part_of_a_short_paragraph_does_not_touch_it():
    assert longest_overlaps([SHORT, "", "…"], [SHORT[:-5], "x"], 13) == [0, 0, 0]


def run(*flags):
    command = [sys.executable, "-m", "launch.contamination", "--config.data.path=sample", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
def test_command(tmp_path):
    from gistjax.config import DataConfig
    from gistjax.data.dataset import load_dataset

    context = load_dataset(DataConfig(path="sample"), 0).validation[0].context
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"title": "t", "paragraphs": ["Before.", context]})
    )
    done = run(f"--config.text.path={tmp_path}", "--config.data.validation_examples=0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["touched"] >= 1 and found["most"][0]["context"] == context
    assert found["most"][0]["words"] == len(words_of(context)) and found["unchecked"] == 0


@pytest.mark.slow
def test_text_that_cannot_be_read_is_not_clean(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "t", "body": "words"}\n')
    done = run(f"--config.text.path={tmp_path}")
    assert done.returncode == 2 and "a.jsonl" in done.stderr


def test_no_text_named():
    done = run()
    assert done.returncode == 2 and "--config.text.path" in done.stderr
