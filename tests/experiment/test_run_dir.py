"""What a finished run says of itself."""

import json
import re

import pytest

from gistjax.compare import compare
from gistjax.config import (
    CompressionConfig,
    DataConfig,
)
from gistjax.errors import CheckpointError
from gistjax.experiment.base import load_trained
from gistjax.experiment.inputs import check_sources
from gistjax.experiment.run_dir import RunDir
from gistjax.inference.engine import load

ANY = CompressionConfig(ratio=4.0, ratios=(2.0, 4.0, 16.0))


def test_a_run_from_before_a_key_was_there_goes_on(tmp_path):
    config = CompressionConfig(loss_weights={"teacher_forcing": 1.0})
    stored = config.to_json()
    del stored["tensorboard"], stored["data"]["task"], stored["encoder"]["lora"]["alpha"]
    (tmp_path / "config.json").write_text(json.dumps({"config": stored, "base_sha256": ""}))
    RunDir(tmp_path).claim(config)
    with pytest.raises(CheckpointError, match="another configuration.*'question'"):
        RunDir(tmp_path).claim(config.replace(data=DataConfig(task="question")))


def test_a_run_of_0_1_is_read_and_goes_on(tmp_path):
    config = CompressionConfig(loss_weights={"teacher_forcing": 1.0})
    about = {"config": config.to_json() | {"teacher_tokens": 16}, "base_sha256": ""}
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "checkpoint").mkdir()
    RunDir(tmp_path).claim(config)
    assert RunDir(tmp_path).config() == config


def test_an_unfinished_run_is_named_alike_by_all_that_read_one(tmp_path):
    run, config = tmp_path / "run", ANY.replace(init_from="start")
    run.mkdir()
    about = {"config": config.to_json(), "base_sha256": ""}
    (run / "config.json").write_text(json.dumps(about))
    readers = {
        "ask, gistjax.load": lambda: load(run),
        "evaluate": lambda: load_trained(RunDir(run), config),
        "compare": lambda: compare(run, [run], 10, 0),
        "teacher": lambda: check_sources(
            ANY.replace(teacher=str(run), loss_weights={"distillation": 1.0})
        ),
    }
    for name, read in readers.items():
        with pytest.raises(CheckpointError) as error:
            read()
        assert re.fullmatch(
            rf"there is no {run}/(compressor\.safetensors|predictions\.json): "
            r"is the run finished\? The command that began it goes on\.",
            str(error.value),
        ), name
