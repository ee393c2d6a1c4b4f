"""Answers to many rows: each its own, padding none, seconds where they were spent."""

import numpy as np
import pytest

from gistjax.compress.context import CompressedContext
from gistjax.compress.parameters import split_model
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.evaluation import generate
from gistjax.runtime.sharding import one_device
from tests.helpers.tiny import tiny_model

LENGTHS = [16, 5, 1]  # of contexts: at 4 tokens a slot 4, 2 and 1 slots


@pytest.fixture(scope="module")
def answering():
    graphdef, *leaves = split_model(tiny_model("mean_pool", ratio=4.0))
    buckets = Buckets((16,), (4,))
    generator = generate.Generator(graphdef, one_device(), 5, (7,), batch_size=2, buckets=buckets)
    rng = np.random.default_rng(0)
    ids = [rng.integers(8, 61, n).astype(np.int32) for n in (*LENGTHS, 3)]
    rows = [TokenizedExample(ids[i], ids[-1] + i, ids[-1][:0], 5 + i, i) for i in range(3)]
    return generator, leaves, rows


def test_each_row_has_its_own_answer_slots_and_seconds(answering, monkeypatch):
    generator, leaves, rows = answering
    timed = generate._timed

    def by_kind(function, arguments):
        return timed(function, arguments)[0], 10.0 if _is_context(arguments[2]) else 1.0

    monkeypatch.setattr(generate, "_timed", by_kind)
    found = generator(*leaves, rows)
    assert found.slots.tolist() == [4, 2, 1]
    assert (found.compress_s, found.answer_s) == (2.0, 20.0), "two batches"
    assert len(found.ids) == 3 and found.ids[0] != found.ids[1] != found.ids[2]
    again = generator(*leaves, rows[::-1])
    assert again.ids == found.ids[::-1] and again.slots.tolist() == [1, 2, 4]
    assert found.shapes == {(16, 4)}


def _is_context(value):
    return isinstance(value, CompressedContext)


def test_slots_are_of_distinct_real_contexts(answering):
    generator, leaves, rows = answering
    vectors, slots = generator.slots(*leaves, [rows[1], rows[1]])
    assert len(vectors) == 1 and slots.tolist() == [2], "what pads the batch is left out"
