import dataclasses

import jax
import numpy as np
import pytest

from gistjax.compress.parameters import split_model
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.evaluation.likelihood import gold_log_likelihood, with_golds
from gistjax.runtime.sharding import one_device
from tests.helpers.tiny import Compiled, tiny_model

BUCKETS = Buckets((16,), (8, 12))


def rows_of(rng, n=5):
    return [
        TokenizedExample(
            rng.integers(1, 61, 7 + i).astype(np.int32),
            rng.integers(1, 61, 3).astype(np.int32),
            rng.integers(1, 61, 1 + i).astype(np.int32),
            i,
            i,
            prefix_ids=(1, 2, 3),
        )
        for i in range(n)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gist", "none"])
def test_it_is_the_mean_log_probability_of_each_gold_token(rng, architecture):
    model, rows = tiny_model(architecture), rows_of(rng)
    found = gold_log_likelihood(split_model(model), rows, one_device(), 2, BUCKETS)
    run = Compiled(model)
    for row, value in zip(rows, found, strict=True):
        tokens = np.concatenate([row.question_ids, row.answer_ids])[None]
        length = np.array([len(row.context_ids)])
        context = run.compress(np.array([1, 2, 3]), row.context_ids[None], length)
        h = run.states(context, tokens, np.array([tokens.size]))
        log_p = jax.nn.log_softmax(model.base.logits(h)[0])
        golds = [log_p[2 + a, token] for a, token in enumerate(row.answer_ids)]
        assert value == pytest.approx(np.mean(golds), abs=1e-4)


def test_golds_too_long_for_the_buckets_are_left_out(rng):
    rows = [dataclasses.replace(row, answer_ids=row.answer_ids[:0]) for row in rows_of(rng, 3)]
    golds = [np.arange(n, dtype=np.int32) for n in (2, 9, 10)]
    kept = with_golds(rows, golds, longest=12)
    assert [(row.context_id, len(row.answer_ids)) for row in kept] == [(0, 2), (1, 9)]
