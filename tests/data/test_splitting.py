"""Long texts: joined lines, pieces of a trained length."""

import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.data.prompts import make_prompt
from gistjax.data.splitting import cut_text, join_wrapped_lines
from gistjax.weights.tokenizers import byte_tokenizer

PROMPT = make_prompt(byte_tokenizer())
decode = PROMPT.tokenizer.decode


def test_pieces_end_where_sentences_do():
    pieces = cut_text("One is here. Two is there! Is three? Yes.\nFour", PROMPT, 28)
    texts = [piece.text for piece in pieces]
    assert texts == [
        "One is here. Two is there!",
        "Is three? Yes.\nFour",
    ]
    pieces = cut_text("One is here. Two is there!", PROMPT, 25)
    assert [piece.text for piece in pieces] == ["One is here.", "Two is there!"]


def test_closing_marks_stay_with_their_sentence():
    pieces = cut_text('He said "I will." Then he left. (It was late.) Nobody saw.', PROMPT, 20)
    assert [piece.text for piece in pieces] == [
        'He said "I will."',
        "Then he left.",
        "(It was late.)",
        "Nobody saw.",
    ]


def test_a_text_without_sentences_is_cut_where_it_must_be():
    assert [len(ids) for _, ids in cut_text("x" * 25, PROMPT, 10)] == [10, 10, 5]


@given(st.text("ab .!?\n\"'é", max_size=200), st.integers(4, 40))
def test_nothing_is_lost_and_no_piece_is_too_long(text, limit):
    pieces = cut_text(text, PROMPT, limit)
    assert all(0 < len(ids) <= limit for _, ids in pieces)
    words = "".join(piece.text for piece in pieces)
    assert "".join(words.split()) == "".join(text.split())
    assert all(ids.dtype == np.int32 and decode(ids) == piece for piece, ids in pieces)


WORDS = st.lists(st.text("abcdeé", min_size=1, max_size=10), min_size=40, max_size=120)


@given(WORDS, st.integers(60, 110), st.sampled_from(["", "   "]))
def test_what_a_wrapper_broke_is_joined_again(words, width, indent):
    paragraph = " ".join(words)
    text = textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent)
    assert join_wrapped_lines(text) == indent + paragraph
    assert (
        join_wrapped_lines(f"{text}\r\n\r\n{text}\n")
        == f"{indent}{paragraph}\n\n{indent}{paragraph}\n"
    )


MILL = """\
The mill was built in 1783 by Anneke Dursel, whose father had owned
the land on the river's left bank. A flood took its first well-
known wheel."""


def test_paragraphs_lists_and_headings_keep_their_breaks():
    text = f"""\
The mill
========

{MILL}

- It ground rye and oats for the farms on the hill, which had no
  water of their own.
- Since 1901 it saws wood."""
    assert join_wrapped_lines(text).splitlines()[3:] == [
        "The mill was built in 1783 by Anneke Dursel, whose father had owned the land on the "
        "river's left bank. A flood took its first well-known wheel.",
        "",
        "- It ground rye and oats for the farms on the hill, which had no water of their own.",
        "- Since 1901 it saws wood.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One line.",
        "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:",
        "def total(numbers: list[float], start: float = 0.0, scale: float = 1.0) -> float:\n"
        "    return 0",
        "from gistjax.data.splitting import cut_text, join_wrapped_lines\n"
        "from numpy import ndarray",
        "for (i = 0; i < number_of_paragraphs_that_the_whole_text_has; i++) {\n  print(i);",
        "| name of the mill | year in which it was built | wheels |\n| Dursel | 1783 | 2 |",
        "README              This file, which tells of all the others\nINSTALL             How to",
        "Each paragraph of this text is on a line of its own, as word processors and web pages "
        "write it, however long such a line becomes.\nSo its line breaks are meant.",
        "A question that somebody asked, followed by a shorter one of its own?\nYes.\nNo.\n"
        "Perhaps.",
    ],
)
def test_what_was_not_wrapped_is_left_alone(text):
    assert join_wrapped_lines(text) == text


def test_fenced_code_is_left_alone():
    code = "```\n" + MILL + "\n```\n"
    assert join_wrapped_lines(f"{MILL}\n\n{code}").endswith("wheel.\n\n" + code)
    assert join_wrapped_lines("```\n" + MILL) == "```\n" + MILL


@given(st.text("ab- .\n\t#1`", max_size=300))
def test_joining_changes_white_space_alone(text):
    assert "".join(join_wrapped_lines(text).split()) == "".join(text.split())


def test_a_long_paragraph_is_joined_in_time_of_its_length():
    """As every join copied all before it, this took 16 s."""
    line = "the mill was built by the river where the old road crosses it again"
    start = time.perf_counter()
    assert join_wrapped_lines(f"{line}\n" * 40_000) == f"{line} " * 39_999 + line + "\n"
    assert time.perf_counter() - start < 5
