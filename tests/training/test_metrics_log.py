import struct

import pytest

from gistjax import validation
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.training.metrics_log import MetricsLog
from gistjax.validation import validate

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs tensorboardX")


def events(folder):
    """The events of all files, as TensorBoard reads them: records of a length, its checksum, the
    data and its checksum.
    """
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(folder):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]


def test_each_logged_number_is_an_event(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, tensorboard=True)
    log.write({"step": 10, "total_steps": 20, "loss": 2.5, "step_s": 0.5})
    log.write({"step": 10, "f1": 0.25, "loss": None})  # as of a loss that is not finite
    log.close()
    found = scalars(tmp_path / "tensorboard")
    assert found == [(10, "loss", 2.5), (10, "step_s", 0.5), (10, "f1", 0.25)]


def test_after_a_resume_what_lies_past_it_is_purged(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl", 7, tensorboard=True).close()
    starts = [e for e in events(tmp_path / "tensorboard") if e.session_log.status == 1]
    assert [event.step for event in starts] == [8]


def test_without_the_flag_there_are_no_events(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl", 0).write({"step": 1, "loss": 1.0})
    assert not (tmp_path / "tensorboard").exists()


def test_the_missing_package_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr(validation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tensorboard\]'"):
        validate(CompressionConfig(tensorboard=True))
