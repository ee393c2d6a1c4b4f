"""What a dry run says: memory, whether it fits, and the way out."""

import pytest

from gistjax.config import (
    CompressionConfig,
    DataConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    SelectConfig,
    TextConfig,
)
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.estimate.plan import dry_run, for_people, plan
from gistjax.estimate.ways_out import steps_that_fit
from gistjax.weights.registry import KNOWN, resolve

LLAMA = ModelConfig("llama-3.1-8b-instruct")
FULL_CONTEXT = CompressionConfig(
    architecture="none",
    loss_weights={"teacher_forcing": 1.0},
    accumulation=1,
    batch_size=32,
    lora=LoraConfig(rank=64),
    model=LLAMA,
)


def planned(config):
    return plan(config, resolve(config.model, offline=True))


def test_what_does_not_fit_is_told_with_the_way_out(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    found = planned(FULL_CONTEXT)
    assert found["memory_estimate_gib"]["total"] > 80 and found["fits"] is False
    assert found["fits_on"] == "NVIDIA H100 80GB HBM3"
    assert found["room_gib"] == pytest.approx(0.75 * 79.1, abs=0.01)
    way = found["way_out"]
    assert way["flags"] == "--config.batch_size=8 --config.accumulation=4"
    assert way["total_gib"] <= found["room_gib"]
    text = for_people(found)
    assert "which does not fit in the 59.33 GiB that JAX has of one NVIDIA H100" in text
    assert "--config.batch_size=8 --config.accumulation=4 (the same training in smaller" in text
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in text


def test_the_way_out_fits_and_has_as_many_rows_a_step(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    found = planned(FULL_CONTEXT)
    assert found["room_gib"] == pytest.approx(0.95 * 79.1, abs=0.01)
    assert found["way_out"]["flags"] == "--config.batch_size=16 --config.accumulation=2"
    again = planned(FULL_CONTEXT.replace(batch_size=16, accumulation=2))
    assert again["fits"] and again["way_out"] is None
    assert again["memory_estimate_gib"]["total"] == found["way_out"]["total_gib"]
    assert again["rows_per_step"] == found["rows_per_step"] == 32
    assert "way out" not in for_people(again)


def test_activations_are_computed_twice_only_where_small_steps_are_too_large():
    base = KNOWN["llama-3.1-8b-instruct"].config
    way, total = steps_that_fit(FULL_CONTEXT, base, 44, 19.5)
    assert way.settings["model.remat"] and total <= 19.5
    assert steps_that_fit(FULL_CONTEXT, base, 44, 10.0) is None


def test_where_nothing_fits_that_is_said(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    found = planned(FULL_CONTEXT)
    assert found["fits"] is False and found["way_out"] is None
    assert "more GPUs" in for_people(found)


def test_a_base_that_was_never_measured_is_compared_with_no_gpu():
    config = CompressionConfig(model=ModelConfig("tiny-random"), data=DataConfig(path="sample"))
    found = planned(config)
    assert found["fits"] is None and found["fits_on"] is None and found["hours"] is None
    assert "as on a GPU" in for_people(found)


TINY = CompressionConfig(model=ModelConfig("tiny-random"), data=DataConfig(path="sample"))
TEXT = {"teacher_forcing": 1.0, "continuation": 1.0}
KEPT = {"architecture": "select", "ratio": 8.0, "loss_weights": {"teacher_forcing": 1.0}}


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"loss_weights": TEXT, "text": TextConfig(path="no")}, DataError, "no is no folder with"),
        ({"init_from": "no/run"}, CheckpointError, "there is no no/run"),
        (KEPT | {"select": SelectConfig(spread="profile")}, ConfigError, "--config.select.profile"),
        (
            KEPT | {"select": SelectConfig(spread="profile", profile="no/file")},
            CheckpointError,
            "no/file",
        ),
        (KEPT | {"select": SelectConfig("question_aware")}, ConfigError, "evaluate` alone"),
        ({"loss_weights": {"distillation": 1.0}, "teacher": "no/run"}, CheckpointError, "no/run"),
        ({"batch_size": 64_000}, DataError, r"training rows are fewer than the 256000 of one step"),
        (
            {"batch_size": 64_000, "data": DataConfig()},
            DataError,
            r"10000 training rows are fewer than the 256000",
        ),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(changes, error, says):
    with pytest.raises(error, match=says):
        dry_run(TINY.replace(**changes))


def test_a_plan_of_kept_entries_trains_adapters_alone():
    found, _ = dry_run(TINY.replace(**KEPT))
    whole, _ = dry_run(TINY.replace(**KEPT | {"architecture": "none", "ratio": 0.0}))
    assert found["trainable_parameters"] == whole["trainable_parameters"] > 0
    assert found["compressor_parameters"] == 0 and found["nominal_compression_ratio"] == 8
    memory, other = (plan["memory_estimate_gib"]["total"] for plan in (found, whole))
    assert memory > other, "it has a cache beside what the step keeps"


def test_a_plan_says_what_mesh_it_is_for():
    found, text = dry_run(TINY)
    assert found["mesh_problem"] is None and "planned for one device" in text
    found, text = dry_run(TINY.replace(mesh=MeshConfig(tensor=3)))
    assert "mesh.tensor=3 takes a multiple of 3 devices" in found["mesh_problem"]
    assert "here the run would stop: mesh.tensor=3" in text
