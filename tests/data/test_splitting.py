import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gistjax.data.prompts import make_prompt
from gistjax.data.splitting import cut_text
from gistjax.weights.registry import byte_tokenizer

PROMPT = make_prompt(byte_tokenizer())
decode = PROMPT.tokenizer.decode


def test_pieces_end_where_sentences_do():
    pieces = cut_text("One is here. Two is there! Is three? Yes.\nFour", PROMPT, 28)
    assert [decode(ids) for ids in pieces] == ["One is here. Two is there!", "Is three? Yes.\nFour"]
    pieces = cut_text("One is here. Two is there!", PROMPT, 25)
    assert [decode(ids) for ids in pieces] == ["One is here.", "Two is there!"]


def test_closing_marks_stay_with_their_sentence():
    pieces = cut_text('He said "I will." Then he left. (It was late.) Nobody saw.', PROMPT, 20)
    assert [decode(ids) for ids in pieces] == [
        'He said "I will."', "Then he left.", "(It was late.)", "Nobody saw.",
    ]  # fmt: skip


def test_a_text_without_sentences_is_cut_where_it_must_be():
    assert [len(ids) for ids in cut_text("x" * 25, PROMPT, 10)] == [10, 10, 5]


@given(st.text("ab .!?\n\"'é", max_size=200), st.integers(4, 40))
def test_nothing_is_lost_and_no_piece_is_too_long(text, limit):
    pieces = cut_text(text, PROMPT, limit)
    assert all(0 < len(ids) <= limit for ids in pieces)
    words = "".join(decode(ids) for ids in pieces)
    assert "".join(words.split()) == "".join(text.split())
    assert all(ids.dtype == np.int32 for ids in pieces)
