import json

import pytest

from gistjax.config import CompressionConfig, DataConfig
from gistjax.errors import CheckpointError
from gistjax.experiment import evaluator as results


def test_metrics_which_mark_a_run_as_finished_are_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(results, "write_json", lambda path, *_, **__: written.append(path.name))
    results.EvalResult({"final_f1": 0.5}, [{"f1": 0.5}], [{"slot": 0}]).write(tmp_path, 3, 1)
    assert written[-1] == "metrics.json" and len(written) == 4


def test_a_run_from_before_a_key_was_there_goes_on(tmp_path):
    config = CompressionConfig(loss_weights={"teacher_forcing": 1.0})
    stored = config.to_json()
    del stored["tensorboard"], stored["data"]["task"], stored["encoder"]["lora"]["alpha"]
    (tmp_path / "config.json").write_text(json.dumps({"config": stored, "base_sha256": ""}))
    results.claim(tmp_path, config)
    with pytest.raises(CheckpointError, match="another configuration.*'question'"):
        results.claim(tmp_path, config.replace(data=DataConfig(task="question")))
