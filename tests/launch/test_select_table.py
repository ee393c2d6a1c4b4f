"""The table of kept entries: the same answers as evaluation gives, cell by cell."""

import json
import sys

import numpy as np
import pytest
from absl import flags

from gistjax import compare, evaluate
from gistjax.compress.profile import write_profile
from gistjax.compress.spread import PROFILE_RATIOS
from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    SelectConfig,
)
from gistjax.errors import ConfigError, DataError
from gistjax.runtime import cli
from gistjax.runtime.tensors import load_tensors, save_tensors
from launch.select_table import __main__ as select_table
from launch.select_table import table as tables
from launch.select_table.answers import Answers, as_predictions, complete, read
from tests.helpers.runs import write_run

FULL = CompressionConfig(
    architecture="none",
    loss_weights={"teacher_forcing": 1.0, "contrastive": 0.0},
    model=ModelConfig(name="tiny-facts", dtype="float32"),
    lora=LoraConfig(rank=2),
    data=DataConfig(
        path="facts",
        context="paragraph",
        context_tokens=96,
        context_buckets=(64, 96),
        question_buckets=(32,),
        validation_examples=25,
    ),
    evaluation=EvaluationConfig(
        batch_size=1, max_answer_tokens=6, bootstrap_samples=20, baseline=False
    ),
)
SPREADS, RATIOS = ("head", "layer", "all", "profile"), (2.0, 8.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A full-context run whose adapter does something, and profiles of two scorers."""
    folder = tmp_path_factory.mktemp("runs")
    rundir = write_run(folder / "full", FULL)
    arrays, metadata = load_tensors(rundir / "compressor.safetensors")
    rng = np.random.default_rng(0)
    noisy = {name: x + 0.02 * rng.normal(size=x.shape) for name, x in arrays.items()}
    noisy = {name: x.astype(np.float32) for name, x in noisy.items()}
    save_tensors(rundir / "compressor.safetensors", noisy, metadata)
    return rundir


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    parts = np.random.default_rng(1).uniform(0.05, 1, (2, 4, 1)) ** np.log2(PROFILE_RATIOS)
    write_profile(folder / "kvzip.safetensors", parts, {})
    return folder


def call(run, output, *words, monkeypatch):
    """The command, in this process."""
    values = flags.FlagValues()
    select_table.define_flags(values)
    words = [f"--run={run}"] * bool(run) + [f"--output={output}", *words]
    monkeypatch.setattr(sys, "argv", ["select_table", *words])
    select_table.main(cli.parse(sys.argv, select_table._defaults, values), values)


@pytest.fixture(scope="module")
def made(run, profiles, tmp_path_factory):
    """A table of two scorers, of which one sees the question."""
    output = tmp_path_factory.mktemp("table") / "table.json"
    with pytest.MonkeyPatch.context() as patch:
        words = ("--ratios=2,8", f"--spreads={','.join(SPREADS)}", f"--profiles={profiles}")
        words += ("--scorers=kvzip,question_aware", "--contexts=paragraph")
        call(run, output, *words, monkeypatch=patch)
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scorer", "spread", "ratio"),
    [
        pytest.param("kvzip", "head", 2.0, marks=pytest.mark.long),
        ("kvzip", "all", 8.0),
        ("kvzip", "profile", 8.0),
        ("question_aware", "layer", 8.0),
    ],
)
def test_a_cell_has_the_answers_of_evaluation(made, run, profiles, tmp_path, scorer, spread, ratio):
    profile = str(profiles / f"{scorer}.safetensors") if spread == "profile" else ""
    select = SelectConfig(scorer, spread, profile)
    config = FULL.replace(architecture="select", ratio=ratio, select=select)
    metrics = evaluate.evaluate_run(run, config, tmp_path / "predictions.json")
    expected = json.loads((tmp_path / "predictions.json").read_text())
    content = read(made.with_suffix(".answers") / f"paragraph.{scorer}.json")
    found = as_predictions(content, f"{spread}@{ratio:g}")
    keys = ("id", "context_id", "prediction", "f1", "em")
    assert found == [{key: row[key] for key in keys} for row in expected]
    row = row_of(made, scorer, spread, ratio)
    assert row["f1"] == metrics["final_f1"] and row["em_interval"] == metrics["final_em_interval"]
    assert row["bytes_per_context_token"] == metrics["bytes_per_context_token"]


def row_of(made, *key):
    rows = json.loads(made.read_text())["rows"]
    return next(row for row in rows if tuple(row[k] for k in tables.KEY[1:]) == key)


@pytest.mark.slow
def test_controls_stand_beside_the_cells(made, run):
    rows = json.loads(made.read_text())["rows"]
    assert len(rows) == 2 + (2 * len(SPREADS) - 1) * len(RATIOS)
    full, closed = row_of(made, "full_context", "", None), row_of(made, "closed_book", "", None)
    metrics = evaluate.evaluate_run(run)
    assert full["f1"] == metrics["final_f1"] > closed["f1"]
    assert full["bytes_per_context_token"] == metrics["bytes_per_context_token"] == 2 * 8 * 32 * 4
    assert closed["bytes_per_context_token"] == 0
    cut = row_of(made, "kvzip", "all", 2.0)
    assert 1024 <= cut["bytes_per_context_token"] <= 1.05 * 1024, "rounded up for each context"
    assert cut["compress_ms"] > 0 and cut["device"]
    if full["normalised_f1"] is not None:
        assert full["normalised_f1"] == 1 and closed["normalised_f1"] == 0
    page = tables.page(rows)
    assert page.count("| kvzip | all |") == len(tables.MEASURES)


@pytest.mark.slow
def test_what_is_there_is_not_asked_again(made, run, profiles, monkeypatch):
    before = made.read_bytes()
    monkeypatch.setattr("launch.select_table.programs.Programs.answer", None)
    words = ("--ratios=8", "--spreads=profile", f"--profiles={profiles}", "--contexts=paragraph")
    call(run, made, "--scorers=kvzip", *words, monkeypatch=monkeypatch)
    assert made.read_bytes() == before
    with pytest.raises(DataError, match="answers of other questions, seed"):
        words = (*words, "--config.seed=7")
        call(run, made, "--scorers=kvzip", *words, monkeypatch=monkeypatch)


@pytest.mark.slow
def test_a_table_that_ran_out_of_time_goes_on(made, run, tmp_path, monkeypatch):
    output = tmp_path / "table.json"
    words = ("--ratios=2,8", "--spreads=all", "--scorers=kvzip", "--contexts=paragraph")
    batches = iter([False] * 4 + [True] * 10)  # two controls, the scorer, a batch
    with monkeypatch.context() as patch:
        patch.setattr(
            "launch.select_table.measure.Table.is_late", property(lambda _: next(batches))
        )
        with pytest.raises(SystemExit, match="75"):
            call(run, output, *words, monkeypatch=patch)
    content = read(output.with_suffix(".answers") / "paragraph.kvzip.json")
    answered = [x is not None for x in content["cells"]["all@8"]["prediction"]]
    assert any(answered) and not all(answered) and not complete(content)
    call(run, output, *words, monkeypatch=monkeypatch)
    rows = json.loads(output.read_text())["rows"]
    same = ("f1", "em", "f1_interval", "bytes_per_context_token")
    for row in rows:
        other = row_of(made, *(row[key] for key in tables.KEY[1:]))
        assert all(row[key] == other[key] for key in same)


@pytest.mark.slow
def test_a_run_without_contexts_is_the_floor(made, run, tmp_path, monkeypatch):
    output = tmp_path / "table.json"
    folder = output.with_suffix(".answers")
    closed = tmp_path / "closed"
    words = ("--cell=paragraph.closed_book", f"--to={closed}")
    call("", made, *words, monkeypatch=monkeypatch)
    predictions = json.loads((closed / "predictions.json").read_text())
    half = [{**row, "f1": 0.5} for row in predictions]
    (closed / "predictions.json").write_text(json.dumps(half))
    (closed / "config.json").write_text((run / "config.json").read_text())
    (closed / "metrics.json").write_text("{}")
    words = ("--scorers=knorm", "--ratios=8", "--spreads=all", "--contexts=paragraph")
    for _ in range(2):  # made, and read again
        call(run, output, *words, f"--closed_book={closed}", monkeypatch=monkeypatch)
        assert row_of(output, "closed_book", "", None)["f1"] == 0.5
    content = read(folder / "paragraph.knorm.json")
    content["cells"]["all@8"]["f1"] = [1.0] * len(content["ids"])
    (folder / "paragraph.knorm.json").write_text(json.dumps(content))
    call("", output, monkeypatch=monkeypatch)
    assert row_of(output, "knorm", "all", 8.0)["f1"] == 1.0, "rows are made of the answers"
    with pytest.raises(ConfigError, match="no answers to tabulate"):
        call("", tmp_path / "other.json", monkeypatch=monkeypatch)


@pytest.mark.slow
def test_cells_are_compared_with_runs(made, tmp_path, monkeypatch):
    cells = {"a": "paragraph.kvzip.all@8", "b": "paragraph.full_context"}
    for name, cell in cells.items():
        words = (f"--cell={cell}", f"--to={tmp_path / name}")
        call("", made, *words, monkeypatch=monkeypatch)
    found = compare.compare(tmp_path / "a", [tmp_path / "b"], 20, FULL.seed)
    assert found["f1"] == row_of(made, "kvzip", "all", 8.0)["f1"]
    with pytest.raises(ConfigError, match="no whole cell 'paragraph.kvzip.all@3'"):
        call("", made, "--cell=paragraph.kvzip.all@3", monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--scorers=kvzap", "--scorers cannot be 'kvzap'; did you mean 'kvzip'"),
        ("--ratios=0.5", "must be at least 1"),
        ("--ratios=two", "must be numbers"),
        ("--spreads=profile", "needs a profile of each scorer"),
        ("--config.architecture=closed_book", "architecture: .* another value"),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(word, message, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": FULL.to_json()}))
    with pytest.raises(ConfigError, match=message):
        call(run, tmp_path / "table.json", word, monkeypatch=monkeypatch)


def test_a_damaged_file_of_answers_is_refused(tmp_path):
    asked = {"ids": ["a", "b"], "context_ids": [0, 0], "tokens": [5, 5]}
    answers = Answers(tmp_path / "x.json", {"seed": 1}, asked)
    answers.put("all@2", 0, ("text", 1.0, 0.0, 7))
    assert answers.missing(["all@2"]) == [1]
    answers.write()
    assert Answers(tmp_path / "x.json", {"seed": 1}, asked).missing(["all@2"]) == [1]
    with pytest.raises(DataError, match="other ids"):
        Answers(tmp_path / "x.json", {"seed": 1}, {**asked, "ids": ["a", "c"]})
    (tmp_path / "x.json").write_text('{"ids": ["a"], "cells": {"all@2": {"f1": []}}}')
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "x.json")
