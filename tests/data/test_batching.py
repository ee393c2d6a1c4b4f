"""Shapes, order and padding of batches."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.data.batching import (
    PlanSettings,
    TrainPlan,
    evaluation_batches,
    make_batch,
    total_steps,
)
from gistjax.data.example import Buckets, Targets, TokenizedExample
from gistjax.errors import DataError

CONTEXTS, QUESTIONS = (8, 16, 32), (6, 12)
BUCKETS = Buckets(CONTEXTS, QUESTIONS)
sizes = st.tuples(st.integers(1, 32), st.integers(1, 8), st.integers(1, 4))


def make_rows(lengths: list[tuple[int, int, int]]) -> list[TokenizedExample]:
    """Rows of (context, question, answer) lengths; every id tells its row."""
    return [
        TokenizedExample(
            np.full(c, i + 1, np.int32),
            np.full(q, i + 1, np.int32),
            np.full(a, -i - 1, np.int32),
            i // 2,
            i,
        )
        for i, (c, q, a) in enumerate(lengths)
    ]


def random_rows(n: int, seed: int = 0) -> list[TokenizedExample]:
    rng = np.random.default_rng(seed)
    return make_rows(
        list(zip(rng.integers(1, 33, n), rng.integers(1, 9, n), rng.integers(1, 5, n), strict=True))
    )


def plan_of(
    rows: list[TokenizedExample], batch_size: int = 4, accumulation: int = 1, seed: int = 0
) -> TrainPlan:
    return TrainPlan(rows, BUCKETS, PlanSettings(batch_size, seed, accumulation))


def test_arrays_of_a_batch():
    rows = [
        TokenizedExample(
            np.array([1, 2], np.int32), np.array([3], np.int32), np.array([4, 5], np.int32), 7, 0
        ),
        TokenizedExample(
            np.array([6], np.int32), np.array([7, 8], np.int32), np.array([9], np.int32), 8, 1
        ),
    ]
    batch = make_batch([[row] for row in rows], (3, 4), size=3)
    np.testing.assert_array_equal(batch.context_ids_ExC, [[1, 2, 0], [6, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.tokens_BxS, [[3, 4, 5, 0], [7, 8, 9, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.context_length_E, [2, 1, 1])
    np.testing.assert_array_equal(batch.question_length_B, [1, 2, 1])
    np.testing.assert_array_equal(batch.answer_length_B, [2, 1, 0])
    np.testing.assert_array_equal(batch.context_id_E, [7, 8, -1])
    chex.assert_type(jax.tree.leaves(batch), np.int32)


def test_a_batch_is_a_pytree():
    batch = make_batch([[row] for row in random_rows(2)], (32, 12))
    assert len(jax.tree.leaves(batch)) == 8
    doubled = jax.jit(lambda b: jax.tree.map(lambda x: 2 * x, b))(batch)
    np.testing.assert_array_equal(doubled.tokens_BxS, 2 * batch.tokens_BxS)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(sizes, min_size=12, max_size=70),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_every_row_once_but_less_than_a_step(lengths, batch_size, accumulation, seed):
    rows = make_rows(lengths)
    plan = plan_of(rows, batch_size, accumulation, seed)
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([plan.rows(step).ravel() for step in steps])
        assert (
            len(set(seen.tolist()))
            == len(seen)
            == len(rows) - len(rows) % (batch_size * accumulation)
        )


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(sizes, min_size=12, max_size=50),
    seed=st.integers(0, 5),
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=8),
)
def test_rows_are_a_pure_function_of_seed_and_step(lengths, seed, steps):
    rows = make_rows(lengths)
    one = plan_of(rows, seed=seed)
    in_order = {step: one.batch(step) for step in sorted(steps)}
    for step in steps:  # any order, in one plan and in a new one
        chex.assert_trees_all_equal(one.batch(step), in_order[step])
        chex.assert_trees_all_equal(plan_of(rows, seed=seed).batch(step), in_order[step])


def test_micro_batches_have_their_own_axis_and_the_same_rows():
    rows = random_rows(60)
    flat, stacked = plan_of(rows, 12, 1).batch(3), plan_of(rows, 4, 3).batch(3)
    flat, stacked = (dataclasses.replace(batch, prefix_ids_P=None) for batch in (flat, stacked))
    chex.assert_tree_shape_prefix(flat, (1, 12))
    chex.assert_tree_shape_prefix(stacked, (3, 4))
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), flat),
        jax.tree.map(lambda x: x.reshape(12, *x.shape[2:]), stacked),
    )


@pytest.mark.parametrize("batch_size, accumulation", [(4, 2), (2, 4), (1, 8)])
def test_a_steps_rows_and_ratios_do_not_depend_on_its_split(batch_size, accumulation):
    def plan_of_split(batch_size, accumulation):
        sizes = {"questions": 2, "epochs": 2.5, "ratios": (2.0, 4.0, 8.0), "ratio_growth": 0.7}
        settings = PlanSettings(batch_size, 3, accumulation, **sizes)
        return TrainPlan(rows, BUCKETS, settings)

    rows = make_rows([(8 + i // 2 % 20, 1 + i % 8, 1 + i % 4) for i in range(100)])
    one, other = plan_of_split(8, 1), plan_of_split(batch_size, accumulation)
    assert one.total_steps == other.total_steps > 10
    for step in range(one.total_steps):
        np.testing.assert_array_equal(one.rows(step), other.rows(step))
        for a, b in zip(*map(jax.tree.leaves, (one.batch(step), other.batch(step))), strict=True):
            np.testing.assert_array_equal(a.ravel(), b.ravel())


def test_the_prompt_before_the_context_comes_with_the_batch():
    rows = [dataclasses.replace(row, prefix_ids=(7, 8)) for row in random_rows(24)]
    batch = plan_of(rows, 4, accumulation=3).batch(0)
    np.testing.assert_array_equal(batch.prefix_ids_P, [[7, 8]] * 3)
    other = dataclasses.replace(rows[0], prefix_ids=(9,))
    with pytest.raises(ValueError, match="2 different prompts"):
        make_batch([rows[:1], [other]], (32, 12))


def test_epochs_and_seeds_differ():
    rows = random_rows(60)
    plan = plan_of(rows)
    orders = [
        np.concatenate([p.rows(first + step) for step in range(p.steps_per_epoch)]).tolist()
        for p, first in ((plan, 0), (plan, plan.steps_per_epoch), (plan_of(rows, seed=1), 0))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_no_row_is_left_out_for_ever():
    # One row alone in the largest shape: were the left-over rows dropped there, it never came.
    rows = make_rows([(1, 1, 1)] * 30 + [(32, 8, 4)])
    plan = plan_of(rows)
    seen = {int(i) for step in range(20 * plan.steps_per_epoch) for i in plan.rows(step).flat}
    assert seen == set(range(31))


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(sizes, min_size=4, max_size=60))
def test_training_rows_fit_and_keep_their_ids(lengths):
    rows = make_rows(lengths)
    plan = plan_of(rows)
    for step in range(plan.steps_per_epoch):
        batch = jax.tree.map(lambda x: x[0], plan.batch(step))
        assert batch.context_ids_ExC.shape[1] in CONTEXTS and batch.tokens_BxS.shape[1] in QUESTIONS
        for b, i in enumerate(plan.rows(step).ravel()):
            check_row(batch, b, rows[i], len(rows[i].answer_ids))


def check_row(batch, b: int, row: TokenizedExample, answer_length: int) -> None:
    c, q = len(row.context_ids), len(row.question_ids)
    lengths = (batch.context_length_E[b], batch.question_length_B[b], batch.answer_length_B[b])
    assert lengths == (c, q, answer_length)
    assert batch.context_id_E[b] == row.context_id
    np.testing.assert_array_equal(batch.context_ids_ExC[b, :c], row.context_ids)
    np.testing.assert_array_equal(batch.tokens_BxS[b, :q], row.question_ids)
    np.testing.assert_array_equal(
        batch.tokens_BxS[b, q : q + answer_length], row.answer_ids[:answer_length]
    )
    assert not batch.context_ids_ExC[b, c:].any()
    assert not batch.tokens_BxS[b, q + answer_length :].any()


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(sizes, max_size=60), batch_size=st.integers(1, 9))
def test_evaluation_has_every_row_once(lengths, batch_size):
    rows = make_rows(lengths)
    seen = []
    for indices, batch in evaluation_batches(rows, batch_size, BUCKETS):
        by_row = dataclasses.replace(batch, prefix_ids_P=None)
        chex.assert_tree_shape_prefix(by_row, (batch_size,))
        for b, i in enumerate(indices):
            check_row(batch, b, rows[i], 0)
        n = len(indices)
        assert (batch.context_id_E[n:] == -1).all()
        assert (batch.context_length_E >= 1).all() and (batch.question_length_B >= 1).all()
        seen += list(indices)
    assert sorted(seen) == list(range(len(rows)))


def real_share(plan):
    """Share of real tokens where a context is read as it is."""
    return plan.real_decoder_share(0, lambda length: length)


def test_few_shapes_and_little_padding():
    rows = random_rows(2_000)
    plan = plan_of(rows, 8)
    assert sum(plan.shapes.values()) == plan.steps_per_epoch == 250
    assert len(plan.shapes) <= len(CONTEXTS) * len(QUESTIONS)
    one_shape = TrainPlan(rows, Buckets(CONTEXTS[-1:], QUESTIONS[-1:]), PlanSettings(8))
    assert one_shape.shapes == {(32, 12): 250}
    assert real_share(one_shape) < real_share(plan) < 1


def test_rare_shapes_are_not_compiled():
    rows = make_rows([(1, 1, 1)] * 990 + [(9, 1, 1)] * 9 + [(32, 8, 4)] * 9)
    assert set(plan_of(rows, 2).shapes) == {(8, 6), (32, 12)}


def test_real_share():
    rows = make_rows([(4, 2, 1), (4, 3, 3)])
    assert real_share(plan_of(rows, 2)) == (7 + 10) / (2 * (8 + 6))
    shared = TrainPlan(rows, BUCKETS, PlanSettings(1, questions=3))
    assert real_share(shared) == (7 + 10) / (3 * (8 + 6))


@settings(max_examples=60, deadline=None)
@given(
    of_context=st.lists(st.integers(1, 7), min_size=4, max_size=20),
    questions=st.integers(2, 4),
    seed=st.integers(0, 5),
)
def test_questions_on_a_context_share_its_compression(of_context, questions, seed):
    rng = np.random.default_rng(seed)
    rows = [
        TokenizedExample(
            np.full(1 + c % 32, c, np.int32), np.full(rng.integers(1, 9), i), np.full(2, -i), c, i
        )
        for c, n in enumerate(of_context)
        for i in range(n)
    ]
    plan = TrainPlan(rows, BUCKETS, PlanSettings(2, seed, 2, questions))
    units = sum(-(-n // questions) for n in of_context)
    assert plan.steps_per_epoch == units // 4
    seen = []
    for step in range(plan.steps_per_epoch):
        batch, indices_UxQ = plan.batch(step), plan.rows(step)
        assert batch.questions == questions
        chex.assert_shape(batch.context_length_E, (2, 2))
        chex.assert_shape(batch.tokens_BxS, (2, 2 * questions, None))
        contexts = batch.context_id_E.ravel()
        lengths = batch.answer_length_B.reshape(4, questions)
        tokens = batch.tokens_BxS.reshape(4, questions, -1)
        for u, unit in enumerate(indices_UxQ):
            assert unit[0] >= 0, "no unit is empty"
            for q, i in enumerate(unit):
                assert lengths[u, q] == (2 if i >= 0 else 0)
                if i >= 0:
                    assert rows[i].context_id == contexts[u]
                    n = len(rows[i].question_ids)
                    np.testing.assert_array_equal(tokens[u, q, :n], rows[i].question_ids)
        seen += [i for i in indices_UxQ.flat if i >= 0]
    assert len(seen) == len(set(seen))
    if units % 4 == 0:
        assert len(seen) == len(rows)


def test_ratios_come_in_one_after_the_other():
    def drawn(growth, step):
        settings = PlanSettings(8, epochs=20, ratios=(1.0, 2.0, 4.0, 8.0), ratio_growth=growth)
        plan = TrainPlan(random_rows(60), BUCKETS, settings)
        return plan.total_steps, set(plan.batch(step).ratio_N.ravel().tolist())

    total, first = drawn(0.5, 0)
    assert first == {1.0}
    assert drawn(0.5, total // 4 - 1)[1] == {1.0, 2.0}
    assert drawn(0.5, total - 1)[1] == {1.0, 2.0, 4.0, 8.0}
    assert drawn(0.0, 0)[1] == {1.0, 2.0, 4.0, 8.0}
    plan = TrainPlan(random_rows(60), BUCKETS, PlanSettings(4, accumulation=2, ratios=(2.0,)))
    chex.assert_shape(plan.batch(0).ratio_N, (2, 4))


def test_several_ratios_are_drawn_for_each_question():
    ratios = (1.0, 2.0, 4.0, 8.0)
    rows = [
        TokenizedExample(np.full(1 + c, c, np.int32), np.full(1 + i % 5, i), np.full(2, -i), c, i)
        for i, c in enumerate(np.repeat(np.arange(20), np.arange(20) % 5 + 1))
    ]
    settings = PlanSettings(4, questions=3, ratios=ratios, ratios_a_row=2, kvzip_chooses=0.5)
    once = TrainPlan(rows, BUCKETS, dataclasses.replace(settings, ratios_a_row=1))
    twice = TrainPlan(rows, BUCKETS, settings)
    for step in range(twice.total_steps):
        batch = twice.batch(step)
        chex.assert_shape((batch.ratio_N, batch.question_length_B), (1, 24))
        chex.assert_shape((once.batch(step).ratio_N, batch.kvzip_chooses_1), [(1, 12), (1, 1)])
        assert bool(batch.kvzip_chooses_1) == (step < 0.5 * twice.total_steps)
        asked = batch.tokens_BxS.reshape(4, 6, -1)
        drawn, lengths = batch.ratio_N.reshape(4, 6), batch.answer_length_B.reshape(4, 6)
        for unit, rows_of_unit in enumerate(once.rows(step)):
            n = int((rows_of_unit >= 0).sum())
            assert (lengths[unit, : 2 * n] > 0).all() and (lengths[unit, 2 * n :] == 0).all()
            np.testing.assert_array_equal(asked[unit, :n], asked[unit, n : 2 * n])
            assert (drawn[unit, :n] != drawn[unit, n : 2 * n]).all()
            assert set(drawn[unit, : 2 * n]) <= set(ratios)


def test_the_drawn_ratios_depend_on_step_and_seed():
    def drawn(seed, step):
        settings = PlanSettings(16, seed, epochs=9, ratios=(1.0, 2.0, 4.0, 8.0))
        return TrainPlan(random_rows(64), BUCKETS, settings).batch(step).ratio_N.ravel().tolist()

    each = [drawn(seed, step) for seed in (0, 1) for step in (0, 1, 2)]
    assert len(set(map(tuple, each))) == 6
    assert each[0] == drawn(0, 0)
    assert set(sum(each, [])) == {1.0, 2.0, 4.0, 8.0}


def test_bits_are_drawn_for_each_row_by_step_and_seed_and_change_no_ratio():
    def batch(bits, seed=0, step=0):
        settings = PlanSettings(
            8, seed, accumulation=2, epochs=9, ratios=(1.0, 2.0), ratios_a_row=2, bits=bits
        )
        return TrainPlan(random_rows(64), BUCKETS, settings).batch(step)

    assert batch(()).bits_B is None
    each = [batch((16, 4, 2), seed, step) for seed in (0, 1) for step in (0, 1, 2)]
    chex.assert_shape(each[0].bits_B, (2, 16))
    drawn = [tuple(one.bits_B.ravel().tolist()) for one in each]
    assert len(set(drawn)) == 6
    assert set(sum(drawn, ())) == {16, 4, 2}
    np.testing.assert_array_equal(each[0].bits_B, batch((16, 4, 2)).bits_B)
    np.testing.assert_array_equal(each[0].ratio_N, batch(()).ratio_N)


def test_total_steps():
    def total(**how_long):
        return TrainPlan(random_rows(60), BUCKETS, PlanSettings(8, **how_long)).total_steps

    assert total(epochs=2.5) == 17 and total(epochs=2.5, max_steps=4) == 4
    assert total(epochs=1, max_steps=100) == 7


@pytest.mark.parametrize("steps", [25, 29, 100, 700])
def test_no_step_is_lost_to_the_fractions_of_floats(steps):
    for hundredths in range(400):
        assert total_steps(hundredths / 100, steps, -1) == hundredths * steps // 100
        assert total_steps(0.01 * hundredths, steps, -1) == hundredths * steps // 100


def test_real_decoder_share_counts_prefix_memory_and_tokens():
    rows = make_rows([(4, 2, 1), (2, 3, 3)])  # context, question, answer
    plan = plan_of(rows, 2)
    (((C, S), _),) = ((shape, n) for shape, n in plan.shapes.items())
    tokens = 3 + 6
    # Three slots: the context of two tokens fills only two of them.
    three, half, whole = (lambda context: 3), (lambda context: -(-context // 2)), int
    assert plan.real_decoder_share(5, three) == (2 * 5 + 3 + 2 + tokens) / (2 * (5 + 3 + S))
    assert plan.real_decoder_share(5, half) == (2 * 5 + 2 + 1 + tokens) / (2 * (5 + C // 2 + S))
    assert plan.real_decoder_share(5, whole) == (2 * 5 + 4 + 2 + tokens) / (2 * (5 + C + S))


def test_views_go_with_their_contexts():
    rows = make_rows([(4, 2, 1), (2, 3, 3)])
    size = max(row.context_id for row in rows) + 1
    views = np.arange(size, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    plan = TrainPlan(rows, BUCKETS, PlanSettings(2), views=views)
    batch = plan.batch(0)
    np.testing.assert_array_equal(batch.context_view_ExD[0, :, 0], batch.context_id_E[0])


def test_too_few_rows_for_a_step():
    with pytest.raises(
        DataError, match=r"5 training rows are fewer than the 6 of one step \(2 x 3"
    ):
        plan_of(random_rows(5), 3, 2)


@pytest.mark.parametrize(
    ("lengths", "message"), [((33, 1, 1), "context of 33"), ((1, 12, 1), "question of 13")]
)
def test_a_row_that_fits_no_bucket(lengths, message):
    with pytest.raises(DataError, match=message):
        plan_of(make_rows([lengths] * 8))


def test_each_row_goes_with_its_own_targets():
    rows = random_rows(12)
    number = np.arange(10, dtype=np.float32)  # the last two rows have none
    targets = Targets(np.arange(10, dtype=np.int32)[:, None, None], number[:, None, None])
    plan = TrainPlan(rows, BUCKETS, PlanSettings(2, questions=2), teacher=targets)
    batch, indices = plan.batch(0), plan.rows(0)
    assert batch.teacher.ids_NxAxY.shape == (1, 4, 1, 1)
    for row, target in zip(indices.ravel(), batch.teacher.ids_NxAxY.ravel(), strict=True):
        assert target == row or not 0 <= row < 10


def test_answers_stay_where_they_are_asked_for():
    rows = random_rows(5)
    lengths = {
        answers: {
            int(i): int(a)
            for indices, batch in evaluation_batches(rows, 2, BUCKETS, answers)
            for i, a in zip(indices, batch.answer_length_B, strict=False)
        }
        for answers in (False, True)
    }
    assert set(lengths[False].values()) == {0}
    assert lengths[True] == {i: len(row.answer_ids) for i, row in enumerate(rows)}
