"""The blocks and means of a mixture, by hand."""

import dataclasses
import json

import numpy as np
import pytest

from gistjax import run_single_ablation
from gistjax.compare import compare, table
from gistjax.config import CompressionConfig, TextConfig
from gistjax.data.tasks import load_task
from gistjax.errors import CheckpointError
from gistjax.evaluate import evaluate_run
from gistjax.evaluation.statistics import mean_interval, normalised
from gistjax.experiment.meaning import asked
from gistjax.experiment.run_dir import RunDir
from gistjax.experiment.task_evaluator import SHARED, means
from gistjax.inference.engine import load
from gistjax.report import report
from gistjax.sharing.model_card import model_card
from tests.helpers.runs import TRAINED

DATA = dataclasses.replace(
    TRAINED.data, tasks={"squad": 0.5, "question": 1.0}, train_examples=-1, validation_examples=4
)
MIXTURE = TRAINED.replace(data=DATA, loss_weights={"teacher_forcing": 1.0})


def block(f1, normalised_f1=None, **more):
    between = normalised_f1 and [normalised_f1 - 0.1, normalised_f1 + 0.1]
    return {
        "final_f1": f1,
        "final_f1_interval": [f1 - 0.03, f1 + 0.03],
        "final_em": f1 / 2,
        "baseline_f1": None,
        "baseline_em": None,
        "closed_book_f1": 0.1,
        "closed_book_em": 0.0,
        "normalised_f1": normalised_f1,
        "normalised_f1_interval": between,
        **more,
    }


def test_means_are_over_tasks_and_of_normalised_scores_over_those_that_have_one():
    found = means({"a": block(0.2), "b": block(0.6, 0.8), "c": block(0.7, 0.6)})
    assert found["final_f1"] == pytest.approx(0.5) and found["final_em"] == pytest.approx(0.25)
    half = np.sqrt(3) * 0.03 / 3
    assert found["final_f1_interval"] == pytest.approx([0.5 - half, 0.5 + half])
    assert found["baseline_f1"] is None and "baseline_f1_interval" not in found
    assert found["normalised_f1"] == pytest.approx(0.7)
    assert found["normalised_tasks"] == ["b", "c"]
    nothing = means({"a": block(0.2)})
    assert nothing["normalised_f1"] is nothing["normalised_f1_interval"] is None
    assert "shuffled_f1" not in nothing
    shuffled = {"a": block(0.2, shuffled_f1=0.1), "b": block(0.4, shuffled_f1=0.3)}
    assert means(shuffled)["shuffled_f1"] == pytest.approx(0.2)


def test_the_interval_of_a_mean_is_that_of_independent_draws(rng):
    drawn = [rng.normal(m, s, 20_000) for m, s in ((0.3, 0.02), (0.5, 0.04))]
    centres = [float(d.mean()) for d in drawn]
    low, high = mean_interval(centres, [np.percentile(d, (2.5, 97.5)).tolist() for d in drawn])
    expected = np.percentile((drawn[0] + drawn[1]) / 2, (2.5, 97.5))
    assert [low, high] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("floor", "ceiling", "expected"),
    [(0.1, 0.9, 0.5), (0.5, 0.5, None), (0.9, 0.1, None), (0.5, 0.51, None)],
)
def test_a_fraction_of_almost_nothing_is_none(floor, ceiling, expected):
    N = 200
    found = normalised(np.full(N, 0.5), np.full(N, floor), np.full(N, ceiling), range(N), 200, 0)
    assert expected is None and found is None or found.value == pytest.approx(expected)


def test_a_difference_that_may_be_chance_makes_no_scale(rng):
    floor, ceiling = rng.random(30) < 0.03, rng.random(30) < 0.1
    assert normalised(np.ones(30), floor, ceiling, range(30), 500, 0) is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder / "mixture", run_single_ablation(MIXTURE, folder / "mixture")


@pytest.mark.slow
def test_each_task_has_a_block_with_its_controls(finished):
    run, metrics = finished
    assert list(metrics["tasks"]) == ["question", "squad"]
    rows = json.loads((run / "predictions.json").read_text())
    for task, found in metrics["tasks"].items():
        own = [row for row in rows if row["task"] == task]
        assert found["n_examples"] == len(own) == 4
        assert found["final_f1"] == pytest.approx(np.mean([row["f1"] for row in own]))
        assert {"baseline_f1", "closed_book_f1", "normalised_f1", "by_type"} <= found.keys()
        assert not found.keys() & set(SHARED)
        assert all(row["id"].startswith(f"{task}/") for row in own)
    assert metrics["n_examples"] == 8 and metrics["seed"] == 42
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["task"] for row in log} == {"question", "squad"}


@pytest.mark.slow
def test_a_mixture_goes_on_exactly_and_with_its_own_weights_alone(finished, tmp_path):
    whole = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    unscored = dataclasses.replace(DATA, validation_examples=0)
    short = MIXTURE.replace(data=unscored, eval_every=-1)
    again = tmp_path / "again"
    run_single_ablation(short, again)
    (again / "metrics.json").unlink()
    for path in (again / "checkpoint").glob("6*"):
        path.rename(tmp_path / path.name)
    run_single_ablation(short, again)
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "task", "loss", "grad_norm")
    assert [[row[k] for k in keys] for row in lines] == [[row[k] for k in keys] for row in whole]
    other = dataclasses.replace(unscored, tasks={"squad": 0.5, "question": 2.0})
    with pytest.raises(CheckpointError, match=r"data\.tasks was .*'question': 1\.0"):
        run_single_ablation(short.replace(data=other), again)


@pytest.mark.slow
def test_a_run_of_a_mixture_is_scored_asked_and_shown_on_each_task(finished, tmp_path):
    run, metrics = finished
    data = dataclasses.replace(DATA, task="squad", validation_examples=3)
    single = evaluate_run(run, MIXTURE.replace(data=data))
    assert "tasks" not in single and single["n_examples"] == 3
    engine = load(run)
    assert engine.config.data.task == "question" and not engine.config.data.tasks
    prompt = load_task("question").prompt(engine.pretrained.tokenizer)
    assert engine.pretrained.prompt.prefix_ids == prompt.prefix_ids
    found = compare(run, [run], 50, 0)
    assert found["tasks"].keys() == {"question", "squad"}
    assert {part["n_examples"] for part in found["tasks"].values()} == {4}
    assert "\nsquad\n" in table(found)
    rows = json.loads((run / "predictions.json").read_text())
    (tmp_path / "one").mkdir()
    squad = [row for row in rows if row["task"] == "squad"]
    (tmp_path / "one" / "predictions.json").write_text(json.dumps(squad))
    for pair in ((run, tmp_path / "one"), (tmp_path / "one", run)):
        shared = compare(pair[0], [pair[1]], 50, 0)
        assert shared["n_examples"] == 4 and list(shared["tasks"]) == ["squad"]
    summary = report([run], tmp_path / "report")
    assert [(row["task"], row["controls"]) for row in summary["tasks"]] == [
        ("question", "untuned"),
        ("squad", "untuned"),
    ]
    assert "F1, closed book" in (tmp_path / "report" / "results.md").read_text()
    assert '<table id="tasks"' in (tmp_path / "report" / "report.html").read_text()
    card = model_card(MIXTURE, RunDir(run).about(), metrics)
    assert "of these, squad" in card and "question 67%" in card and "means over tasks" in card


def test_one_task_asked_takes_the_place_of_the_mixture():
    mixture = CompressionConfig(data=DATA)
    single = mixture.replace(data=dataclasses.replace(DATA, task="nq"))
    assert asked(single, mixture).data == dataclasses.replace(DATA, task="nq", tasks={})
    more = mixture.replace(data=dataclasses.replace(DATA, tasks={**DATA.tasks, "nq": 1.0}))
    for config in (mixture, more):
        assert asked(config, mixture) == config


@pytest.mark.slow
def test_text_alone_can_be_trained_on_and_a_mixture_scored(tmp_path):
    (tmp_path / "text").mkdir()
    paragraphs = [f"The mill of Esker number {i} was built in {1700 + i}." for i in range(90)]
    article = json.dumps({"title": "Mills", "paragraphs": paragraphs})
    (tmp_path / "text" / "a.jsonl").write_text(article)
    config = MIXTURE.replace(
        data=dataclasses.replace(DATA, train_examples=0, validation_examples=1),
        text=TextConfig(path=str(tmp_path / "text"), min_tokens=64, target_tokens=16),
        loss_weights={"teacher_forcing": 0.0, "generation": 0.0, "reconstruction": 1.0},
        max_steps=1,
        accumulation=1,
        batch_size=1,
    )
    metrics = run_single_ablation(config, tmp_path / "run")
    assert metrics["steps"] == 1 and metrics["tasks"].keys() == {"question", "squad"}
