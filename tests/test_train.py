"""The whole run on a tiny random base and the questions that come with the package."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from gistjax import run_single_ablation, train
from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    TextConfig,
)
from gistjax.data.dataset import load_dataset
from gistjax.data.example import hash_rows
from gistjax.errors import CheckpointError, ConfigError
from gistjax.evaluate import evaluate_run
from gistjax.evaluation.metrics import squad as score_of
from gistjax.experiment.inputs import load_inputs
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.files import RunLock
from gistjax.runtime.sharding import make_mesh
from gistjax.training.metrics_log import RATES
from tests.helpers.runs import TRAINED as CONFIG
from tests.helpers.runs import UNSCORED


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    rundir = tmp_path_factory.mktemp("run") / "M8_pooling"
    return rundir, run_single_ablation(CONFIG, rundir)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the run trains on and answers."""
    mesh = make_mesh(CONFIG.mesh)
    run = RunDir(tmp_path_factory.mktemp("none"))
    return load_inputs(CONFIG, run, mesh, load_dataset(CONFIG.data, CONFIG.seed))


@pytest.mark.slow
def test_a_run_says_of_its_training_what_was_done(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["total_steps"]) for row in rows] == [(n, 6) for n in range(1, 7)]
    for row in rows:
        parts = sum(weight * row[name] for name, weight in CONFIG.loss_weights.items() if weight)
        assert row["loss"] == pytest.approx(parts, abs=3e-6) and row["grad_norm"] > 0
        assert row["examples_per_s"] > 0 and row["step_s"] > 0
        assert row["tokens_per_s"] > 100 * row["examples_per_s"]
    assert len({row["loss"] for row in rows}) == 6


@pytest.mark.slow
def test_a_run_says_of_its_answers_what_they_are(finished, inputs):
    rundir, metrics = finished
    assert metrics == json.loads((rundir / "metrics.json").read_text())
    rows = json.loads((rundir / "predictions.json").read_text())
    assert rows == json.loads((rundir / "sample_predictions.json").read_text())
    for row, example in zip(rows, inputs.examples, strict=True):
        assert (row["id"], row["question"]) == (example.id, example.question)
        assert row["answers"] == list(example.answers)
        assert row["f1"] == score_of(row["prediction"], example.answers).f1
        assert row["em"] == score_of(row["prediction"], example.answers).em
    for name in ("f1", "em"):
        mean = np.mean([row[name] for row in rows])
        assert metrics[f"final_{name}"] == pytest.approx(mean)
        low, high = metrics[f"final_{name}_interval"]
        assert low <= mean <= high
    assert metrics["wall_time_per_sample_s"].keys() == {"compress", "answer"}
    lengths = [len(row.context_ids) for row in inputs.validation]
    slots = [min(length, 8) for length in lengths]
    expected = {
        "architecture": "pooling",
        "target_length": 8,
        "compression_ratio": 24.0,
        "effective_compression_ratio": sum(lengths) / sum(slots),
        "n_examples": 9,
        "steps": 6,
        "seed": 42,
        "base_model": "tiny-random",
        "device": "8 x cpu",
    }
    assert {key: metrics[key] for key in expected} == expected
    size = sum(array.size for array in load_file(rundir / "compressor.safetensors").values())
    assert metrics["trainable_parameters"] == size
    assert 0 < metrics["compressor_parameters"] < size


@pytest.mark.slow
def test_a_run_says_what_it_was_trained_on(finished, inputs):
    stored = json.loads((finished[0] / "config.json").read_text())
    assert CompressionConfig.from_dict(stored.pop("config")) == CONFIG
    assert stored.pop("packages")["jax"] == jax.__version__
    pretrained = inputs.pretrained
    assert stored == {
        "format": 2,
        "base_weights": pretrained.source.describe(),
        "base_sha256": pretrained.base_sha256,
        "prompt_sha256": pretrained.prompt.sha256,
        "data_sha256": hash_rows(inputs.train),
        "device": "8 x cpu",
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1},
    }


def test_schedule_and_losses_are_those_of_the_whole_training(monkeypatch, inputs, tmp_path):
    """The rate falls over all epochs; the model's own answers end as the prompt says."""
    seen = {}

    def record(name, stops=False):
        real = getattr(train, name)

        def recording(*args, **kwargs):
            seen[name] = args
            if stops:
                raise Stop
            return real(*args, **kwargs)

        monkeypatch.setattr(train, name, recording)

    record("make_optimizer")
    record("LossSettings")
    record("make_train_step", stops=True)
    config = UNSCORED.replace(epochs=2.5, max_steps=-1, spike_factor=7.0)
    with pytest.raises(Stop):
        run_single_ablation(config, tmp_path, inputs.pretrained)
    steps_an_epoch = len(inputs.train) // 16
    assert seen["make_optimizer"][:2] == (config.optimizer, int(2.5 * steps_an_epoch))
    longest = max(len(row.answer_ids) for row in inputs.train)
    prompt = inputs.pretrained.prompt
    assert seen["LossSettings"] == (config.loss_weights, longest, prompt.end_ids)
    assert inputs.train[0].answer_ids[-1] == prompt.end_id
    assert seen["make_train_step"][-1] == 7.0


class Stop(Exception):
    """Raised where a test has seen enough."""


def test_a_run_holds_the_lock_of_its_directory(tmp_path):
    with RunLock(tmp_path), pytest.raises(CheckpointError, match="in use by process"):
        run_single_ablation(CONFIG, tmp_path)
    assert not (tmp_path / "config.json").exists()


HALF_WRITTEN = {
    "config.json": ("cut", r"config\.json is damaged .*restore it from a copy, or move"),
    "config.json gone": ("gone", r"config\.json is missing: restore it"),
    "checkpoint": ("gone", r"finished run without its .*checkpoint: restore it"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HALF_WRITTEN)
def test_a_half_written_directory_is_refused_by_name(what, finished, tmp_path):
    rundir = shutil.copytree(finished[0], tmp_path / "copy")
    how, told = HALF_WRITTEN[what]
    path = rundir / what.removesuffix(" gone")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=told):
        run_single_ablation(CONFIG, rundir)


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_written_again(finished, tmp_path, caplog):
    """Metrics, exports and the log's last line come from the checkpoint, and are whole again."""
    rundir = shutil.copytree(finished[0], tmp_path / "copy")
    for name in ("metrics.json", "predictions.json", "compressor.safetensors"):
        (rundir / name).write_bytes((rundir / name).read_bytes()[:50])
    log = (rundir / "metrics.jsonl").read_bytes()
    (rundir / "metrics.jsonl").write_bytes(log + b'{"step": 7, "lo')
    (rundir / "config.json.tmp").write_text("{")
    (rundir / "checkpoint" / "unfinished" / "8").mkdir(parents=True)
    with caplog.at_level("INFO"):
        again = run_single_ablation(CONFIG, rundir)
    assert "is trained to its end: it is only evaluated again" in caplog.text
    assert again["final_f1"] == finished[1]["final_f1"]
    assert json.loads((rundir / "metrics.json").read_text()) == again
    assert (rundir / "metrics.jsonl").read_bytes() == log
    assert (rundir / "predictions.json").read_bytes() == (
        finished[0] / "predictions.json"
    ).read_bytes()
    assert_same_trainables(finished[0], rundir)


@pytest.mark.slow
def test_the_same_again_gives_the_same_bytes(finished, tmp_path):
    rundir, metrics = finished
    asked = dataclasses.replace(CONFIG.evaluation, baseline=False)
    again = run_single_ablation(CONFIG.replace(evaluation=asked), tmp_path / "again")
    assert again["final_f1"] == metrics["final_f1"]
    assert_same_trainables(rundir, tmp_path / "again")


def assert_same_trainables(one, other):
    a, b = (load_file(path / "compressor.safetensors") for path in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(finished, tmp_path):
    rundir = shutil.copytree(finished[0], tmp_path / "copy")
    before = (rundir / "metrics.jsonl").read_bytes()
    assert run_single_ablation(CONFIG, rundir)["final_f1"] == finished[1]["final_f1"]
    assert (rundir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_another_configuration_in_the_same_directory_is_refused(finished):
    with pytest.raises(CheckpointError, match=r"target_length was 8 and is 4.*--workdir"):
        run_single_ablation(CONFIG.replace(target_length=4), finished[0])


@pytest.mark.slow
def test_other_base_weights_in_the_same_directory_are_refused(finished, tmp_path):
    rundir = shutil.copytree(finished[0], tmp_path / "copy")
    stored = json.loads((rundir / "config.json").read_text())
    (rundir / "config.json").write_text(json.dumps({**stored, "base_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="other base weights"):
        run_single_ablation(CONFIG, rundir)


@pytest.mark.slow
def test_scores_do_not_depend_on_batch_size_or_buckets(finished, tmp_path):
    rundir, metrics = finished
    config = RunDir(rundir).config()
    predictions = []
    for batch_size, buckets in ((1, (192,)), (2, (64, 128, 192))):
        changed = config.replace(
            evaluation=EvaluationConfig(batch_size=batch_size, max_answer_tokens=4, baseline=False),
            data=DataConfig(**{**config.data.__dict__, "context_buckets": buckets}),
        )
        out = tmp_path / f"{batch_size}.json"
        assert evaluate_run(rundir, changed, out)["final_f1"] == metrics["final_f1"]
        predictions.append([row["prediction"] for row in json.loads(out.read_text())])
    assert predictions[0] == predictions[1]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["none", "closed_book"])
def test_uncompressed_controls_run_by_the_same_code(architecture, tmp_path):
    config = CONFIG.replace(
        architecture=architecture,
        max_steps=1,
        loss_weights={"teacher_forcing": 1.0},
        evaluation=EvaluationConfig(batch_size=1, max_answer_tokens=4, baseline=False),
    )
    metrics = run_single_ablation(config, tmp_path)
    assert metrics["compressor_parameters"] == 0
    assert metrics["effective_compression_ratio"] == (1.0 if architecture == "none" else None)
    assert metrics["target_length"] is None


def test_too_long_for_the_base_is_refused_before_weights_load(tmp_path):
    data = DataConfig(path="sample", context_tokens=4096, context_buckets=(4096,))
    with pytest.raises(ConfigError, match="reads 2048 tokens"):
        run_single_ablation(CONFIG.replace(data=data), tmp_path)


@pytest.mark.slow
def test_a_damaged_export_is_refused(finished, tmp_path):
    rundir = shutil.copytree(finished[0], tmp_path / "copy")
    path = rundir / "compressor.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"compressor\.safetensors"):
        evaluate_run(rundir)


@pytest.mark.slow
def test_text_alone_is_trained_on_and_the_next_stage_starts_there(tmp_path):
    paragraphs = [
        f"In {year} the people of town {year % 7} built a bridge." for year in range(1900, 1990)
    ]
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.jsonl").write_text(json.dumps({"title": "t", "paragraphs": paragraphs}) + "\n")
    losses = {"teacher_forcing": 0.0, "reconstruction": 1.0, "continuation": 0.5, "cloze": 1.0}
    data = dataclasses.replace(
        CONFIG.data, train_examples=0, validation_examples=0, questions_per_context=4
    )
    config = CONFIG.replace(
        max_steps=2,
        ratios=(4.0, 64.0),
        slot_start="window_means",
        loss_weights=losses,
        data=data,
        eval_every=1,
        text=TextConfig(path=str(text)),
    )
    metrics = run_single_ablation(config, tmp_path / "pretrain")
    assert metrics == json.loads((tmp_path / "pretrain" / "metrics.json").read_text())
    assert metrics["steps"] == 2 and {"reconstruction", "cloze"} <= set(metrics["losses"])
    following = CONFIG.replace(
        max_steps=0,
        slot_start="window_means",
        init_from=str(tmp_path / "pretrain"),
        evaluation=dataclasses.replace(CONFIG.evaluation, baseline=False),
    )
    scored = run_single_ablation(following, tmp_path / "questions")
    assert scored["steps"] == 0 and scored["n_examples"] == 9
    assert_same_trainables(tmp_path / "pretrain", tmp_path / "questions")


SPLITS = {
    "two": {"batch_size": 1, "accumulation": 2},
    "four": {"batch_size": 2, "accumulation": 4, "mesh": MeshConfig(data=2, tensor=4)},
}


@pytest.mark.slow
@pytest.mark.parametrize("split", [pytest.param("two", marks=pytest.mark.long), "four"])
def test_a_run_of_questions_and_text_does_not_depend_on_its_split(split, tmp_path):
    """16 rows a step, as micro-batches and rows of devices: the same log, the same weights."""
    paragraphs = [f"In {year} the people of town {year % 7} built a bridge." for year in range(99)]
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": "t", "paragraphs": paragraphs}) + "\n")
    weights = {"teacher_forcing": 1.0, "contrastive": 0.2, "cloze": 1.0}
    config = UNSCORED.replace(
        max_steps=3,
        loss_weights=weights,
        text=TextConfig(path=str(tmp_path), min_tokens=16),
        data=dataclasses.replace(UNSCORED.data, train_examples=60),
    )
    splits = {"one": {"batch_size": 2, "accumulation": 1}, split: SPLITS[split]}
    logs = {}
    for name, how in splits.items():
        run_single_ablation(config.replace(**how), tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logs[name] = [
            {key: value for key, value in json.loads(line).items() if key not in RATES}
            for line in lines
        ]
    assert any("cloze" in row for row in logs["one"])
    trained = {name: load_file(tmp_path / name / "compressor.safetensors") for name in splits}
    for row, other in zip(logs["one"], logs[split], strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for key, array in trained["one"].items():
        np.testing.assert_allclose(array, trained[split][key], atol=2e-5, err_msg=key)


@pytest.mark.slow
def test_learns_from_a_teacher(tmp_path):
    control = {"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0}
    few = UNSCORED.replace(data=dataclasses.replace(UNSCORED.data, train_examples=64))
    run_single_ablation(
        few.replace(architecture="none", loss_weights=control, max_steps=1), tmp_path / "teacher"
    )
    weights = {**control, "distillation": 1.0}
    student = few.replace(loss_weights=weights, teacher=str(tmp_path / "teacher"), max_steps=2)
    run_single_ablation(student, tmp_path / "student")
    rows = [json.loads(line) for line in (tmp_path / "student/metrics.jsonl").open()]
    assert all(0 < row["distillation"] < row["loss"] for row in rows)
    with pytest.raises(CheckpointError, match="the directory of a run"):
        run_single_ablation(student.replace(teacher=str(tmp_path)), tmp_path / "lost")
