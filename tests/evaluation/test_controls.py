"""Selected tokens, surprisal and shuffled contexts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given
from hypothesis import strategies as st

from gistjax.compress.budget import Budget
from gistjax.config import CompressionConfig, DataConfig, MeshConfig
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.evaluation.controls import select_tokens, shuffle_contexts, token_surprisal
from gistjax.runtime.sharding import make_mesh, shardings_of
from tests.helpers.tiny import tiny_base, tiny_model

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=6)
PREFIX = (5, 9, 2)


def make_rows(lengths: list[int], questions: int = 2) -> list[TokenizedExample]:
    """Rows on contexts of these lengths, whose ids rise by place, and the contexts' rows apart."""
    contexts = [np.arange(100 * c, 100 * c + n, dtype=np.int32) for c, n in enumerate(lengths)]
    ids = np.array([1], np.int32)
    return [
        TokenizedExample(contexts[c], ids, ids, 7 * c, i)
        for i, c in enumerate(list(range(len(lengths))) * questions)
    ]


def settings(select: str, slots: int = 4, ratio: float = 0.0, seed: int = 0) -> CompressionConfig:
    return CompressionConfig(
        architecture="none",
        target_length=slots,
        ratio=ratio,
        seed=seed,
        data=DataConfig(select=select),
    )


def no_scores(row: TokenizedExample) -> np.ndarray:
    raise AssertionError("only the selection by surprisal asks for it")


def by_digits(row: TokenizedExample) -> np.ndarray:
    """A stand-in for surprisal, without ties and in no order of places."""
    return (row.context_ids * 37) % 101


@pytest.mark.parametrize(
    ("tokens", "slots", "ratio", "expected"),
    [
        (0, 4, 0.0, 0),
        (3, 4, 0.0, 3),
        (40, 4, 0.0, 4),
        (16, 8, 4.0, 4),
        (17, 8, 4.0, 5),
        (1, 8, 4.0, 1),
        (64, 8, 4.0, 8),
        (5, 8, 2.5, 2),
        (6, 8, 2.5, 3),
    ],
)
def test_budget(tokens, slots, ratio, expected):
    assert Budget.of(settings("first", slots, ratio)).slots(tokens) == expected


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, 3.0, 4.0])
def test_the_budget_is_what_a_compressor_uses(ratio):
    lengths_B = np.arange(1, 17)
    model, ids_BxC = tiny_model("mean_pool", ratio=ratio), jnp.zeros((16, 16), jnp.int32)
    _, slots_B = model.compressor(model.base, model.base, ids_BxC, jnp.asarray(lengths_B))
    budget = Budget.of(settings("first", 4, ratio))
    assert slots_B.tolist() == [budget.slots(int(n)) for n in lengths_B]


@given(lengths=LENGTHS, slots=st.integers(1, 12), ratio=st.sampled_from([0.0, 2.0, 3.0]))
def test_selections_keep_the_order_and_fill_the_budget(lengths, slots, ratio):
    rows = make_rows(lengths)
    for select in ("first", "last", "random", "surprisal"):
        config = settings(select, slots, ratio)
        chosen = select_tokens(rows, config, by_digits if select == "surprisal" else no_scores)
        for row, new in zip(rows, chosen, strict=True):
            ids = row.context_ids
            n = min(slots, -(-len(ids) // int(ratio or 1)))
            assert len(new.context_ids) == n
            assert set(new.context_ids.tolist()) <= set(ids.tolist())
            assert (np.diff(new.context_ids) > 0).all(), "as in the context, where ids rise"
            if select == "first":
                np.testing.assert_array_equal(new.context_ids, ids[:n])
            if select == "last":
                np.testing.assert_array_equal(new.context_ids, ids[len(ids) - n :])
            if select == "surprisal":
                left_out = set(by_digits(row).tolist()) - set(by_digits(new).tolist())
                assert all(score < min(by_digits(new)) for score in left_out)
            assert dataclasses.replace(new, context_ids=ids) == row, "nothing else changes"


def test_rows_of_a_context_share_its_selection():
    for select in ("first", "last", "random", "surprisal"):
        chosen = select_tokens(make_rows([30, 20, 3], questions=3), settings(select), by_digits)
        for row in chosen:
            assert row.context_ids is chosen[row.context_id // 7].context_ids


def test_random_selections_hang_on_seed_and_context_only():
    rows = make_rows([30, 30, 30])

    def places(seed: int, rows: list[TokenizedExample]) -> dict[int, list[int]]:
        chosen = select_tokens(rows, settings("random", seed=seed), no_scores)
        return {row.context_id: (row.context_ids % 100).tolist() for row in chosen}

    one = places(0, rows)
    assert places(0, rows[::-1]) == one
    assert places(0, rows[1:2]) == {7: one[7]}
    assert places(1, rows) != one
    assert one[0] != one[7], "contexts of one length do not lose the same places"


def test_random_selections_are_even():
    rows = make_rows([20] * 400, questions=1)
    chosen = select_tokens(rows, settings("random", slots=5), no_scores)
    counts = np.bincount(np.concatenate([row.context_ids % 100 for row in chosen]), minlength=20)
    # Each place stays with probability 1/4: 100 of 400, with a standard deviation of 8.7.
    assert counts.sum() == 2_000 and (abs(counts - 100) < 40).all()


def random_rows(rng: np.random.Generator, lengths: list[int]) -> list[TokenizedExample]:
    return [
        TokenizedExample(
            rng.integers(0, 61, n).astype(np.int32),
            np.ones(2, np.int32),
            np.ones(0, np.int32),
            i,
            i,
        )
        for i, n in enumerate(lengths)
    ]


def measured(rows: list[TokenizedExample], buckets: tuple[int, ...] = (8, 16), batch_size: int = 1):
    mesh = make_mesh(MeshConfig())
    graphdef, state = nnx.split(tiny_base())
    base = nnx.merge(graphdef, jax.device_put(state, shardings_of(state, mesh, "base/")))
    return token_surprisal(base, rows, PREFIX, mesh, batch_size, Buckets(buckets, (4,)))


@pytest.fixture(scope="module")
def surprising():
    """Eleven contexts, two of them of two rows, and their surprisal in batches of eight."""
    rows = random_rows(np.random.default_rng(3), [1, 8, 5, 16, 12, 9, 2, 7, 16, 3, 11])
    rows += [dataclasses.replace(row, example_index=20 + row.context_id) for row in rows[2:4]]
    return rows, measured(rows)


@pytest.mark.slow
def test_surprisal_is_the_negative_log_probability(surprising):
    rows, scores = surprising
    base = tiny_base()
    for row in rows[::3]:
        ids = np.concatenate([PREFIX, row.context_ids])
        h_1xTxD, _ = base(base.embed(jnp.asarray(ids[None])), jnp.arange(len(ids))[None])
        logits_TxV = np.asarray(base.logits(h_1xTxD)[0], np.float64)
        p_TxV = np.exp(logits_TxV - logits_TxV.max(1, keepdims=True))
        p_TxV /= p_TxV.sum(1, keepdims=True)
        before = len(PREFIX) - 1  # the position that predicts the first context token
        expected = [-np.log(p_TxV[before + i, token]) for i, token in enumerate(row.context_ids)]
        assert scores(row).shape == row.context_ids.shape
        np.testing.assert_allclose(scores(row), expected, rtol=1e-4, atol=1e-4)
        assert np.std(expected) > 0.1 or len(expected) == 1


def test_surprisal_of_a_token_hangs_on_what_stands_before_it(surprising):
    """The model runs on the tokens before one place only, so it cannot have seen that one."""
    rows, scores = surprising
    base, row = tiny_base(), rows[5]
    for i in (0, 1, 8):
        ids = np.concatenate([PREFIX, row.context_ids[:i]])
        h_1xTxD, _ = base(base.embed(jnp.asarray(ids[None])), jnp.arange(len(ids))[None])
        log_p_V = jax.nn.log_softmax(base.logits(h_1xTxD[0, -1]))
        assert scores(row)[i] == pytest.approx(-float(log_p_V[row.context_ids[i]]), abs=1e-4)


def test_surprisal_does_not_depend_on_batches_or_buckets(surprising):
    rows, scores = surprising
    again = measured(rows[::-1], buckets=(24,), batch_size=2)
    for row in rows:
        np.testing.assert_allclose(again(row), scores(row), rtol=1e-4, atol=1e-4)


def test_the_most_surprising_tokens_stay(surprising):
    rows, scores = surprising
    for row, new in zip(rows, select_tokens(rows, settings("surprisal"), scores), strict=True):
        best = sorted(np.argsort(scores(row))[::-1][:4])
        np.testing.assert_array_equal(new.context_ids, row.context_ids[best])


@given(
    contexts=st.lists(st.integers(0, 5), min_size=2, max_size=30),
    lengths=st.lists(st.integers(0, 9), min_size=6, max_size=6),
)
def test_every_row_gets_another_context(contexts, lengths):
    assume(len(set(contexts)) > 1)
    own = [np.arange(10 * c, 10 * c + n, dtype=np.int32) for c, n in enumerate(lengths)]
    ids = np.array([1], np.int32)
    rows = [TokenizedExample(own[c], ids + i, ids, c, i) for i, c in enumerate(contexts)]
    shuffled = shuffle_contexts(rows)
    given_to: dict[int, int] = {}
    for row, new in zip(rows, shuffled, strict=True):
        assert new.context_id != row.context_id
        assert new.context_ids is own[new.context_id], "ids and number are of one context"
        assert given_to.setdefault(row.context_id, new.context_id) == new.context_id
        assert (new.question_ids, new.example_index) == (row.question_ids, row.example_index)
    assert set(given_to.values()) == set(contexts), "each is given to one other"


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6))
def test_the_other_context_is_of_another_article(sizes):
    assume(max(sizes) <= sum(sizes) // 2)
    article = np.repeat(np.arange(len(sizes)), sizes)  # of each context, in the data's order
    rows = make_rows([3] * len(article), questions=1)
    for row, new in zip(rows, shuffle_contexts(rows[::-1])[::-1], strict=True):
        assert article[new.context_id // 7] != article[row.context_id // 7]
