"""A run goes on with what it was trained on, exactly, or not at all."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import gistjax
from gistjax import run_single_ablation
from gistjax.config import CompressionConfig, MeshConfig, TextConfig
from gistjax.errors import CheckpointError
from gistjax.experiment.run_dir import RESUMABLE, RunDir
from gistjax.runtime.files import sha256_of
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.settings import walk
from tests.helpers.runs import UNSCORED, write_run

SAMPLE = Path(gistjax.__file__).parent / "data" / "sample"


def another(value, metadata):
    """Another value of a key; whether it could run is not asked."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "cloze": 0.25}
    if isinstance(value, tuple):
        return [*value[:-1]] if value else [2.0]
    if isinstance(value, str):
        return next((c for c in metadata.get("choices", ()) if c != value), value + "x")
    return value + 1


@pytest.mark.parametrize(
    "key, value, metadata", [pytest.param(*key, id=key[0]) for key in walk(CompressionConfig())]
)
def test_every_key_but_the_resumable_ones_stays(key, value, metadata, tmp_path):
    about = {"config": CompressionConfig().to_json(), "base_sha256": ""}
    (tmp_path / "config.json").write_text(json.dumps(about))
    values = CompressionConfig().to_json()
    holder, *groups = values, *key.split(".")
    for group in groups[:-1]:
        holder = holder[group]
    holder[groups[-1]] = another(value, metadata)
    changed = CompressionConfig.from_dict(values)
    assert changed != CompressionConfig()
    if groups[0] in RESUMABLE:
        RunDir(tmp_path).claim(changed)
    else:
        with pytest.raises(CheckpointError, match=f"{key} was .* and is .*--workdir"):
            RunDir(tmp_path).claim(changed)


def test_the_resumable_keys():
    """They touch nothing of what is trained."""
    assert set(RESUMABLE) == {
        "log_every",
        "checkpoint_every",
        "eval_every",
        "tensorboard",
        "evaluation",
        "on_bad_step",
    }


TRAINED = {
    "config": CompressionConfig(batch_size=8, accumulation=4).to_json(),
    "base_sha256": "",
    "mesh": {"data": 2, "fsdp": 2, "tensor": 1},
    "data_sha256": "d" * 64,
    "start_sha256": "5" * 64,
    "teacher_sha256": "7" * 64,
    "profile_sha256": "9" * 64,
}


@pytest.fixture
def trained(tmp_path):
    """A run directory of which only what `check_trained` reads is there."""
    (tmp_path / "config.json").write_text(json.dumps(TRAINED))
    (tmp_path / "checkpoint" / "500").mkdir(parents=True)
    return RunDir(tmp_path)


@pytest.mark.parametrize(
    "found, told",
    [
        ({"data_sha256": "0" * 64}, "other rows.*SHA-256 dddddddddddd…, here 000000000000….*data"),
        ({"start_sha256": "0" * 64}, "another start.*init_from.*--workdir"),
        ({"teacher_sha256": "0" * 64}, "another teacher.*`teacher`"),
        ({"profile_sha256": "0" * 64}, "another profile.*`select.profile`"),
        ({"mesh": {"data": 1, "fsdp": 1, "tensor": 1}}, "128 rows a step.*would have 32.*DEVICES"),
        ({"mesh": {"data": 4, "fsdp": 2, "tensor": 1}}, "128 rows a step.*would have 256"),
    ],
)
def test_what_was_trained_on_is_the_same(found, told, trained):
    trained.check_trained({key: TRAINED[key] for key in found})
    with pytest.raises(CheckpointError, match=told):
        trained.check_trained(found)
    shutil.rmtree(trained.checkpoint / "500")
    trained.check_trained(found)  # nothing was trained yet: it may begin with anything


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 2), (2, 2, 8)])
def test_devices_that_take_as_many_rows_go_on(shape, trained):
    trained.check_trained({"mesh": dict(zip(("data", "fsdp", "tensor"), shape, strict=True))})


def test_a_run_of_an_earlier_version_goes_on_with_a_warning(trained, caplog):
    old = {key: value for key, value in TRAINED.items() if not key.endswith("a_sha256")}
    del old["start_sha256"], old["teacher_sha256"]
    trained.config_file.write_text(json.dumps(old))
    trained.check_trained({"start_sha256": "0" * 64, "mesh": TRAINED["mesh"]})
    assert not caplog.messages
    trained.check_trained({"data_sha256": "0" * 64})
    assert "begun by an earlier gistjax, which did not note the rows" in caplog.text
    with pytest.raises(CheckpointError, match="128 rows a step"):  # that it did note
        trained.check_trained({"mesh": {"data": 1, "fsdp": 1, "tensor": 1}})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Data, text, an earlier stage, a teacher, and a run of four steps on all of them."""
    folder = tmp_path_factory.mktemp("places")
    shutil.copytree(SAMPLE, folder / "data")
    (folder / "text").mkdir()
    paragraphs = [f"In {year} the people of town {year % 7} built a bridge." for year in range(99)]
    lines = [json.dumps({"title": "t", "paragraphs": paragraphs}) + "\n"] * 2
    (folder / "text" / "a.jsonl").write_text("".join(lines))
    data = dataclasses.replace(UNSCORED.data, path=str(folder / "data"), train_examples=40)
    config = UNSCORED.replace(
        max_steps=4,
        data=data,
        init_from=str(folder / "start"),
        teacher=str(folder / "teacher"),
        text=TextConfig(path=str(folder / "text"), min_tokens=16),
        loss_weights={"teacher_forcing": 1.0, "distillation": 0.5, "cloze": 0.5},
        mesh=MeshConfig(data=2, tensor=-1),
    )
    write_run(folder / "start", UNSCORED.replace(seed=1))
    write_run(folder / "teacher", UNSCORED.replace(seed=2, architecture="none"))
    run_single_ablation(config, folder / "run")
    return folder, config


@pytest.fixture
def halfway(places, tmp_path):
    """The same run, stopped after two of the four steps; everything may be changed."""
    folder, config = places
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "run" / "checkpoint" / "4")
    for name in ("metrics.json", "compressor.safetensors"):
        (copy / "run" / name).unlink()
    about = json.loads((copy / "run" / "config.json").read_text())
    text = json.dumps(about).replace(str(folder), str(copy))
    (copy / "run" / "config.json").write_text(text)
    return copy, CompressionConfig.from_dict(json.loads(text)["config"])


def shorten_questions(folder):
    path = folder / "data" / "train.json"
    articles = json.loads(path.read_text())
    articles["data"][-1]["paragraphs"].pop()
    path.write_text(json.dumps(articles))


def shorten_text(folder):
    path = folder / "text" / "a.jsonl"
    path.write_text(path.read_text().replace("In 7 ", "In 8 ", 1))


def change_weights(run):
    arrays, metadata = load_tensors(run / "compressor.safetensors")
    name = min(arrays)
    save_tensors(run / "compressor.safetensors", {**arrays, name: arrays[name] + 1e-3}, metadata)


CHANGES = {
    "questions": (shorten_questions, "other rows"),
    "text": (shorten_text, "other rows"),
    "start": (lambda folder: change_weights(folder / "start"), "another start"),
    "teacher": (lambda folder: change_weights(folder / "teacher"), "another teacher"),
    "no start": (lambda folder: shutil.rmtree(folder / "start"), "there is no .*start"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_a_run_does_not_go_on_with_anything_else(what, halfway):
    folder, config = halfway
    change, told = CHANGES[what]
    before = sha256_of(folder / "run" / "config.json")
    change(folder)
    with pytest.raises(CheckpointError, match=told):
        run_single_ablation(config, folder / "run")
    assert sha256_of(folder / "run" / "config.json") == before


@pytest.mark.slow
def test_a_run_whose_checkpoint_cannot_be_restored_stays_as_it_is(halfway):
    folder, config = halfway
    before = sha256_of(folder / "run" / "config.json")
    (folder / "run" / "checkpoint" / "2" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="manifest.json is missing"):
        run_single_ablation(config.replace(log_every=3), folder / "run")
    assert sha256_of(folder / "run" / "config.json") == before


@pytest.mark.slow
def test_a_run_goes_on_wherever_its_data_lie_now(halfway, places):
    """In another folder, and on as many rows of devices: the same weights as undisturbed."""
    folder, config = halfway
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 4)  # tensor is 2 now, not 4
        run_single_ablation(config, folder / "run")
    about = json.loads((folder / "run" / "config.json").read_text())
    assert about["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2}
    one, other = (load_file(f / "run" / "compressor.safetensors") for f in (places[0], folder))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5, err_msg=name)
    rows = [
        [json.loads(line) for line in (f / "run" / "metrics.jsonl").open()]
        for f in (places[0], folder)
    ]
    for row, again in zip(*rows, strict=True):
        assert again["loss"] == pytest.approx(row["loss"], rel=1e-4)


@pytest.mark.slow
def test_fewer_devices_leave_the_run_as_it_is(halfway):
    folder, config = halfway
    config = config.replace(mesh=MeshConfig())
    about = json.loads((folder / "run" / "config.json").read_text())
    about["config"]["mesh"] = dataclasses.asdict(config.mesh)  # begun on two devices
    (folder / "run" / "config.json").write_text(json.dumps(about))
    before = sha256_of(folder / "run" / "config.json")
    with pytest.raises(CheckpointError, match="with 4 rows a step.*here a step would have 16"):
        run_single_ablation(config, folder / "run")
    assert sha256_of(folder / "run" / "config.json") == before
