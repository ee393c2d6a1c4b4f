"""Shapes of rows, and lengths that a task lowers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.config import DataConfig
from gistjax.data.example import Buckets, Example, TokenizedExample, hash_rows
from gistjax.data.question_writing import swap
from gistjax.data.squad import read
from gistjax.data.tasks import Task
from gistjax.errors import DataError

BUCKETS = Buckets(context=(8, 16), question=(4, 6))


def row(context: int, question: int, answer: int) -> TokenizedExample:
    lengths = (context, question, answer)
    return TokenizedExample(
        *(np.zeros(n, np.int32) for n in lengths), context_id=0, example_index=0
    )


def test_buckets_are_those_of_the_configuration():
    data = DataConfig(context_buckets=(64, 128), question_buckets=(24,))
    assert Buckets.of(data) == Buckets((64, 128), (24,))
    assert Buckets.of(data).largest == (128, 24)


@given(st.integers(0, 16), st.integers(1, 4), st.integers(0, 2))
def test_a_row_takes_the_smallest_shape_that_holds_it(context, question, answer):
    C, S = BUCKETS.shape_of(row(context, question, answer))
    assert (8 if context <= 8 else 16) == C
    assert (4 if question + answer <= 4 else 6) == S


def test_an_empty_context_takes_a_position():
    assert row(0, 2, 1).context_length == 1 and row(0, 2, 1).tokens_length == 3


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((17, 1, 1), r"context of 17 tokens .*context_buckets, 16"),
        ((1, 6, 1), r"question of 7 tokens .*question_buckets, 6"),
    ],
)
def test_a_row_that_no_shape_holds_is_refused(lengths, message):
    with pytest.raises(DataError, match=message):
        BUCKETS.shape_of(row(*lengths))


@pytest.mark.parametrize(("limit", "expected"), [(None, 512), (64, 64), (9_999, 512)])
def test_a_task_lowers_lengths_and_raises_none(limit, expected):
    data = DataConfig(context_tokens=512, answer_tokens=32)
    limited = Task(read, context_tokens=limit).limit(data)
    assert (limited.context_tokens, limited.answer_tokens) == (expected, 32)
    assert Task(read, answer_tokens=4).limit(data).answer_tokens == 4


def test_to_write_a_question_its_answer_has_to_be_found():
    example = Example("q", "", "The cat sat.", "Who sat?", ("cat", "The cat"), 0, evidence=("cat",))
    swapped = swap(example)
    assert swapped.question == "Which question is answered by: cat"
    assert swapped.answers == ("Who sat?",) and swapped.looked_up == "cat"
    assert Example("q", "", "…", "Who?", ("Ada",), 0).looked_up == "Ada", "nothing else is known"


def test_the_hash_of_rows_is_of_all_that_training_reads():
    def row(context=(1, 2), question=(3,), answer=(4, 5), context_id=0, index=0, **more):
        ids = (np.array(part, np.int32) for part in (context, question, answer))
        return TokenizedExample(*ids, context_id, index, **more)

    rows = [row(), row(question=(6,)), row((7,), context_id=1)]
    one = hash_rows(rows)
    assert one == hash_rows([row(index=9), *rows[1:]])
    others = [
        rows[::-1],
        rows[:2],
        [*rows, rows[0]],
        [row((1, 3)), *rows[1:]],
        [row(question=(3, 4), answer=(5,)), *rows[1:]],
        [row(answer=(4, 6)), *rows[1:]],
        [*rows[:2], row((7,), context_id=2)],
        [row(objective="cloze"), *rows[1:]],
        [row(prefix_ids=(1,)), *rows[1:]],
        [],
    ]
    assert len({one, *map(hash_rows, others)}) == 1 + len(others)
