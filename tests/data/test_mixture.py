"""Mixtures of tasks: their order, their shares of the answer tokens, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gistjax.config import CompressionConfig, DataConfig
from gistjax.data.batching import PlanSettings, TrainPlan, evaluation_batches
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Buckets, TokenizedExample, hash_rows
from gistjax.data.mixture import MixedPlan, schedule
from gistjax.data.tasks import each_task, load_task
from gistjax.errors import ConfigError, DataError
from gistjax.validation import validate

BUCKETS = Buckets((8, 16), (8, 40))
SETTINGS = PlanSettings(batch_size=4, seed=3, accumulation=2, epochs=30.0)
WEIGHTS = {"short": 3.0, "long": 1.0}


def rows_of(task, n, answer, prefix, first=0):
    """Rows with answers of about so many tokens under a prompt of their own."""
    rng = np.random.default_rng(len(task))
    return [
        TokenizedExample(
            np.full(rng.integers(1, 17), i + 1, np.int32),
            np.full(3, i + 1, np.int32),
            np.full(rng.integers(answer - 1, answer + 2), i + 1, np.int32),
            first + i,
            i,
            prefix_ids=prefix,
            task=task,
        )
        for i in range(n)
    ]


SHORT, LONG = rows_of("short", 90, 3, (1, 2)), rows_of("long", 40, 30, (1, 2, 3, 4), 90)
ROWS = SHORT + LONG


def mixed(rows=ROWS, weights=WEIGHTS, settings=SETTINGS, **more):
    return MixedPlan(rows, weights, BUCKETS, settings, **more)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_tasks_share_the_answer_tokens_by_weight():
    plan, tokens = mixed(), {"short": 0, "long": 0}
    for step in range(plan.total_steps):
        tokens[plan.task(step)] += int(plan.batch(step).answer_length_B.sum())
    assert tokens["short"] / sum(tokens.values()) == pytest.approx(0.75, abs=0.02)
    assert plan.total_steps == 30 * (130 // 8) and "short" in str(plan)


def test_weights_need_not_have_sum_1():
    shares = [mixed(weights={k: f * w for k, w in WEIGHTS.items()}).shares for f in (1, 0.01)]
    assert shares[0] == pytest.approx(shares[1])


def test_the_rows_of_a_step_depend_on_seed_and_step_alone():
    steps = [300, 7, 0, 451, 300]
    one, other = mixed(), mixed()
    for step in range(40):
        one.batch(step)
    for step in steps:
        assert_same(one.batch(step), other.batch(step))
    another = mixed(settings=dataclasses.replace(SETTINGS, seed=4))
    orders = [[plan.task(step) for step in range(99)] for plan in (one, another)]
    assert orders[0] != orders[1]


def test_a_longer_training_begins_like_a_shorter_one():
    long, short = mixed(), mixed(settings=dataclasses.replace(SETTINGS, max_steps=20))
    assert short.total_steps == 20
    for step in range(20):
        np.testing.assert_array_equal(long.rows(step), short.rows(step))


def test_each_task_has_the_steps_that_it_has_alone():
    """So one that has no rows in a step changes nothing of another's rows, shapes or loss."""
    plan, alone = mixed(), {"short": SHORT, "long": LONG}
    alone = {name: TrainPlan(rows, BUCKETS, SETTINGS) for name, rows in alone.items()}
    done = dict.fromkeys(alone, 0)
    for step in range(plan.total_steps):
        name = plan.task(step)
        expected = alone[name].batch(done[name])
        done[name] += 1
        longest = alone[name].answer_tokens
        assert_same(plan.batch(step), dataclasses.replace(expected, answer_tokens=longest))
        first = 0 if name == "short" else len(SHORT)
        assert {ROWS[i].task for i in plan.rows(step).ravel()} == {name}
        np.testing.assert_array_equal(plan.rows(step), first + alone[name].rows(done[name] - 1))
    assert min(done.values()) > 0


def test_a_task_with_one_question_a_context_has_no_rows_of_padding_for_more():
    shared = [dataclasses.replace(row, context_id=row.context_id // 3) for row in SHORT]
    plan = mixed([*shared, *LONG], settings=dataclasses.replace(SETTINGS, questions=2))
    questions = {plan.task(step): plan.rows(step).shape[1] for step in range(40)}
    assert questions == {"short": 2, "long": 1}


def test_ratios_come_in_by_the_mixture_s_steps():
    settings = dataclasses.replace(SETTINGS, ratios=(2.0, 16.0), ratio_growth=1.0)
    plan = mixed(settings=settings)
    first = [plan.batch(step).ratio_N.max() for step in range(plan.total_steps // 2 - 1)]
    assert max(first) == 2.0
    assert max(plan.batch(plan.total_steps - 1 - i).ratio_N.max() for i in range(5)) == 16.0


def test_text_keeps_its_share_of_the_units():
    text = [dataclasses.replace(r, task="", objective="cloze") for r in rows_of("x", 70, 5, (1, 2))]
    plan = mixed([*ROWS, *text])
    assert plan.shares["text"] == pytest.approx(70 / 200)
    assert sum(plan.shares.values()) == pytest.approx(1)
    counts = [plan.task(step) for step in range(plan.total_steps)].count("text")
    assert counts / plan.total_steps == pytest.approx(0.35, abs=0.01)


def test_counts_are_never_far_from_the_shares():
    shares = [0.05, 0.6, 0.35]
    order, own = schedule(shares, 2_000, 0)
    for end in (10, 100, 2_000):
        counts = np.bincount(order[:end], minlength=3)
        assert np.abs(counts - np.multiply(shares, end)).max() < 2
    for task in range(3):
        np.testing.assert_array_equal(own[order == task], np.arange((order == task).sum()))


def test_a_task_with_too_few_rows_for_a_step_is_named():
    with pytest.raises(DataError, match=r"data\.tasks\.long: 5 training rows are fewer than the 8"):
        mixed([*SHORT, *LONG[:5]])


def test_each_prompt_is_answered_in_batches_of_its_own():
    seen = []
    for indices, batch in evaluation_batches(SHORT[:5] + LONG[:3] + SHORT[5:7], 4, BUCKETS):
        seen += indices.tolist()
        lengths = {len(([*SHORT[:5], *LONG[:3], *SHORT[5:7]])[i].prefix_ids) for i in indices}
        assert lengths == {len(batch.prefix_ids_P)}
    assert sorted(seen) == list(range(10))


@pytest.fixture
def folder(tmp_path):
    """A folder with one folder a task, as a mixture takes it."""
    for task, words in (("squad", "The mill is old."), ("jsonl", "Tea is green.")):
        (tmp_path / task).mkdir()
        rows = [
            {"id": f"{i}", "context": f"{words} {i}", "question": "Who?", "answers": [words[4:8]]}
            for i in range(3)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        for split in ("train", "validation"):
            (tmp_path / task / f"{split}.jsonl").write_text(text)
    return tmp_path


def data_of(folder, **changes):
    tasks = {"squad": 0.5, "jsonl": 0.5}
    data = DataConfig(
        path=str(folder),
        tasks=tasks,
        context="paragraph",
        question_buckets=(96,),
        train_examples=-1,
    )
    return dataclasses.replace(data, **changes)


def test_rows_are_those_of_each_task_alone_under_its_prompt(folder, prompt):
    data = data_of(folder)
    dataset = load_dataset(data, 0)
    train, validation, _ = encode_splits(dataset, prompt, data, 0)
    for split, rows, examples in (
        ("train", train, dataset.train),
        ("validation", validation, dataset.validation),
    ):
        assert [row.task for row in rows] == ["squad"] * 3 + ["jsonl"] * 3
        assert [row.context_id for row in rows] == [example.context_id for example in examples]
        assert len({row.context_id for row in rows}) == 6
        assert len({example.id for example in examples}) == 6
        for name, own in each_task(data).items():
            alone = load_dataset(own, 0)
            own_prompt = load_task(name).prompt(prompt.tokenizer)
            expected = encode_splits(alone, own_prompt, own, 0)[split == "validation"]
            mine = [row for row in rows if row.task == name]
            for row, one in zip(mine, expected, strict=True):
                assert row.prefix_ids == one.prefix_ids == own_prompt.prefix_ids
                for key in ("context_ids", "question_ids", "answer_ids"):
                    np.testing.assert_array_equal(getattr(row, key), getattr(one, key))


def test_no_mixture_is_the_single_task_as_it_was(folder, prompt):
    plain = DataConfig(path=str(folder / "squad"), context="paragraph", question_buckets=(96,))
    zero = dataclasses.replace(plain, tasks={"hotpotqa": 0.0, "squad": 0})
    assert zero == plain and each_task(plain) == {"answer": plain} and not plain.mixture
    rows = encode_splits(load_dataset(plain, 0), prompt, plain, 0)[0]
    assert {row.task for row in rows} == {""} and {row.context_id for row in rows} == {0, 1, 2}
    named = [dataclasses.replace(row, task="squad") for row in rows]
    assert hash_rows(rows) == hash_rows(named)


def test_tasks_that_share_data_share_a_folder(folder):
    data = data_of(folder, tasks={"gsm8k": 1.0, "gsm8k_numbers": 1.0, "answer": 1.0, "nq": 1.0})
    found = {name: own.path for name, own in each_task(data).items()}
    names = {"gsm8k": "gsm8k", "gsm8k_numbers": "gsm8k", "answer": "squad", "nq": "nq"}
    assert found == {task: str(folder / name) for task, name in names.items()}
    packed = data_of("sample", tasks={"answer": 1.0, "question": 1.0})
    assert {own.path for own in each_task(packed).values()} == {"sample"}


def test_the_order_of_tasks_is_that_of_the_table():
    one = DataConfig(tasks={"hotpotqa": 1.0, "squad": 2.0})
    other = DataConfig(tasks={"squad": 2.0, "hotpotqa": 1.0})
    assert list(one.mixture) == list(other.mixture) == ["squad", "hotpotqa"]
    assert one.main_task == "squad" and DataConfig(task="nq").main_task == "nq"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"squat": 1.0}}, r"data\.tasks has no task 'squat'; did you mean 'squad'"),
        ({"tasks": {"squat": 0.0}}, "no task 'squat'"),
        ({"tasks": {"squad": -1.0}}, r"data\.tasks\.squad=-1\.0 must be 0 \(not asked\) or above"),
        ({"tasks": {"squad": float("nan")}}, r"data\.tasks\.squad=nan"),
        ({"tasks": {"squad": float("inf")}}, r"data\.tasks\.squad=inf"),
        ({"task": "hotpotqa"}, "data.task='hotpotqa' is one task, and data.tasks has squad, jsonl"),
        ({"path": "", "name": "mine/squad"}, "one data set, and data.tasks has several"),
    ],
)
def test_what_is_no_mixture_is_refused_by_name(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(CompressionConfig(data=data_of(folder, **changes)))


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ({"hotpotqa": 1.0}, DataError, r"data\.tasks\.hotpotqa: .*hotpotqa is no folder"),
        ({"gsm8k_numbers": 1.0}, DataError, r"data\.tasks\.gsm8k_numbers: .*gsm8k is no folder"),
        ({"nq": 1.0}, ConfigError, r"data\.tasks\.nq: .*for evaluation only"),
        ({"hotpotqa": 1.0, "nq": 1.0}, ConfigError, r"data\.tasks\.nq: .*for evaluation only"),
    ],
)
def test_a_task_without_data_is_refused_by_name(folder, tasks, error, message):
    if "nq" in tasks:
        (folder / "squad").rename(folder / "nq")
    with pytest.raises(error, match=message):
        load_dataset(data_of(folder, tasks={"jsonl": 1.0, **tasks}), 0)


def test_a_task_whose_file_is_empty_is_refused_by_name(folder):
    (folder / "jsonl" / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"data\.tasks\.jsonl: .*nothing to train on"):
        load_dataset(data_of(folder), 0)
