"""Answers from packed entries are timed, on a small base."""

from types import SimpleNamespace

import pytest

from launch import packed_speed
from tests.helpers.tiny import TINY, tiny_model


@pytest.mark.slow
def test_few_bits_and_16_are_timed_and_their_bytes_are_those_of_the_arrays():
    args = SimpleNamespace(entries=32, tokens=3, answer_tokens=3, repeats=1)
    model, rows = tiny_model("select"), 2
    whole, few = (packed_speed.measure(model, rows, args, bits) for bits in (None, 4))
    heads, H = TINY.n_layers * TINY.n_kv_heads * rows, TINY.head_dim
    tables, kept = 2 * 4 * heads, heads * 32
    assert whole["resident_bytes"] == tables + kept * 2 * H * 4
    assert few["resident_bytes"] == tables + kept * (2 * H // 2 + 4) + heads * H * 4
    assert min(whole["answer_s"], few["answer_s"], few["temporary_bytes"]) > 0
