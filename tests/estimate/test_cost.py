import dataclasses
from collections import Counter

import pytest

from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    ModelConfig,
    TextConfig,
)
from gistjax.data.dataset import load_dataset
from gistjax.errors import DataError
from gistjax.estimate.cost import (
    START_S,
    Cost,
    cost_of,
    makespan,
    measurements,
    nearest,
    positions_of,
    project,
    steps_of,
)
from gistjax.estimate.plan import for_people, plan
from gistjax.weights.registry import resolve

MEASURED = [
    {
        "base_model": "llama-3.1-8b-instruct",
        "layers": 32,
        "rows": rows,
        "positions": 128,
        "step_s": step_s,
        "decode_token_s": 0.007,
        "answer_32_s": 0.2,
        "answer_32_full_context_s": 0.6,
    }
    for rows, step_s in ((8, 0.064), (32, 0.24))
]
TEACHER = {"teacher_forcing": 1.0}


def test_steps_of_the_seeds_ablations():
    assert steps_of(CompressionConfig()) == 10_000 * 10 // 32
    assert steps_of(CompressionConfig(max_steps=100)) == 100
    shared = CompressionConfig(data=DataConfig(questions_per_context=8))
    assert steps_of(shared) == int(10_000 / 4.6 * 10 / 32)


def test_a_config_of_a_measured_shape_takes_the_measured_time():
    config = CompressionConfig(
        loss_weights=TEACHER
    )  # 8 rows of 64 slots and 64 tokens, 4 micro-steps
    cost = cost_of(config, 10**9, MEASURED)
    assert cost.train_s == pytest.approx(3125 * 4 * 0.064)
    assert cost.evaluate_s == pytest.approx(1000 / 32 * (0.2 + 0.6))
    assert cost.disk_gib == pytest.approx(40e9 / 2**30)
    assert cost.hours(1) == pytest.approx((START_S + cost.train_s + cost.evaluate_s) / 3600)
    assert cost.hours(4) == pytest.approx((START_S + (cost.train_s + cost.evaluate_s) / 4) / 3600)


def test_a_plan_compares_memory_with_the_device_and_tells_the_time():
    source = resolve(ModelConfig("llama-3.1-8b-instruct"), offline=True)
    found = plan(CompressionConfig(architecture="pooling", loss_weights=TEACHER), source)
    assert (found["steps"], found["hours_on"]) == (3125, "NVIDIA H100 80GB HBM3")
    assert found["hours"] == pytest.approx(
        (START_S + 3125 * 4 * 0.064 + 1000 / 32 * 0.797) / 3600, abs=0.02
    )
    assert found["device_memory_gib"] is None and found["fits"] is True  # of a CPU; on that GPU
    text = for_people({**found, "device_memory_gib": 20.0, "fits": False})
    assert "base 14.96" in text and "which does not fit" in text and "20.00 GiB each" in text
    assert f"3,125 steps, about {found['hours']:.2f} h on one NVIDIA H100 80GB HBM3" in text


def test_what_was_never_measured_or_counted_is_not_guessed():
    config = CompressionConfig(
        architecture="pooling", model=ModelConfig("tiny-random"), data=DataConfig(train_examples=-1)
    )
    found = plan(config, resolve(config.model, offline=True))
    assert found["steps"] is None and found["hours"] is None and found["hours_on"] is None
    assert "steps unknown" in for_people(found)


def test_local_questions_are_counted():
    shared = DataConfig(path="sample", train_examples=-1, questions_per_context=2)
    config = CompressionConfig(loss_weights=TEACHER, data=shared, batch_size=2, accumulation=1)
    examples = load_dataset(shared, 42)
    units = sum(-(-n // 2) for n in Counter(example.context for example in examples.train).values())
    assert steps_of(config) == int(config.epochs * (units // 2))
    every = dataclasses.replace(shared, validation_examples=-1)
    costs = [cost_of(config.replace(data=data), 1, MEASURED) for data in (every, shared)]
    assert costs[0].hours(1) == costs[1].hours(1) is not None, "no more than there are"
    with pytest.raises(DataError, match="nowhere"):
        steps_of(config.replace(data=dataclasses.replace(shared, path="nowhere")))


def test_unknown_counts():
    text = {"teacher_forcing": 0.0, "reconstruction": 1.0, "cloze": 1.0}
    chunks = TextConfig(path="text", chunks=320, reconstruction=2, cloze=6)
    few = CompressionConfig(
        loss_weights=text,
        text=chunks,
        batch_size=32,
        accumulation=1,
        data=DataConfig(train_examples=0),
    )
    shared = dataclasses.replace(few.data, questions_per_context=4)
    assert steps_of(few) == 80 * int(few.epochs) and steps_of(few.replace(data=shared)) == 20 * int(
        few.epochs
    )
    unknown = few.replace(text=dataclasses.replace(chunks, chunks=-1))
    assert steps_of(unknown) is None and steps_of(unknown.replace(max_steps=7)) == 7
    unscored = CompressionConfig(loss_weights=TEACHER, data=DataConfig(validation_examples=-1))
    cost = cost_of(unscored, 1, MEASURED)
    assert cost.steps == 3125 and cost.hours(1) is None, "nobody knows how long the evaluation is"


def test_other_losses_and_sizes_cost_what_they_add():
    position = 0.064 / (8 * 128)
    teacher = cost_of(CompressionConfig(loss_weights=TEACHER), 1, MEASURED)
    larger = cost_of(CompressionConfig(loss_weights=TEACHER, target_length=128), 1, MEASURED)
    assert larger.train_s == pytest.approx(1.5 * teacher.train_s)
    generation = cost_of(
        CompressionConfig(loss_weights={**TEACHER, "generation": 0.3}), 1, MEASURED
    )
    extra = 3125 * 4 * 16 * (0.007 + 8 * position)
    assert generation.train_s == pytest.approx(teacher.train_s + extra)
    contrastive = cost_of(
        CompressionConfig(loss_weights={**TEACHER, "contrastive": 0.2}), 1, MEASURED
    )
    views = 10_000 * 512 * position / 2 * 8 / 32
    assert contrastive.train_s == pytest.approx(teacher.train_s + views)
    short = EvaluationConfig(baseline=False)
    assert cost_of(CompressionConfig(evaluation=short), 1, MEASURED).evaluate_s == pytest.approx(
        1000 / 32 * 0.2
    )


def test_positions_of_encoder_and_decoder():
    assert positions_of(CompressionConfig(), 32) == 128
    assert positions_of(CompressionConfig(encoder=EncoderConfig(kind="lora")), 32) == 128 + 512
    hidden = EncoderConfig(kind="hidden", layers=8)
    assert positions_of(CompressionConfig(encoder=hidden), 32) == 128 + 512 / 4 / 2
    assert positions_of(CompressionConfig(architecture="none"), 32) == 512 + 64
    assert nearest(CompressionConfig(batch_size=30), MEASURED)["rows"] == 32


def test_an_unmeasured_base_has_no_hours():
    other = CompressionConfig().to_json()
    other["model"]["name"] = "someone/llama"
    cost = cost_of(CompressionConfig.from_dict(other), 1, MEASURED)
    assert cost.hours(1) is None and cost.steps == 3125
    assert project({"a": cost}, 4, 1)["hours"] is None


def test_runs_fill_the_gpus():
    assert makespan([1, 1, 1], 1) == 3
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1], 8) == 1
    day = Cost(1, 3600.0 * 24 - START_S, 0.0, 1.0)
    costs = {str(i): day for i in range(12)}
    assert project(costs, 1, 1)["hours"] == 12 * 24
    assert project(costs, 4, 1) == {
        "gpus": 4,
        "gpus_per_run": 1,
        "runs_at_a_time": 4,
        "hours": 72.0,
        "gpu_hours": 288.0,
        "disk_gib": 12.0,
    }
    assert project(costs, 64, 1)["hours"] == 24
    assert project(costs, 64, 4)["hours"] == pytest.approx(6.06, abs=0.01)


def test_the_measurements_hold_what_is_asked_of_them():
    for name in ("llama-3.1-8b-instruct", "smollm2-135m-instruct"):
        config = CompressionConfig().to_json()
        config["model"]["name"] = name
        assert cost_of(CompressionConfig.from_dict(config), 1, measurements()).hours(1) > 0
