"""Overlap of evaluation contexts with pretraining text."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.contamination import longest_overlaps, words_of

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


def test_words():
    assert words_of("Héllo, W-orld… 12.5%") == ["héllo", "w", "orld", "12", "5"]


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
    assert found["most"][0]["words"] == len(words_of(context))


@pytest.mark.slow
def test_text_that_cannot_be_read_is_not_clean(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "t", "body": "words"}\n')
    done = run(f"--config.text.path={tmp_path}")
    assert done.returncode == 2 and "a.jsonl" in done.stderr


def test_no_text_named():
    done = run()
    assert done.returncode == 2 and "--config.text.path" in done.stderr
