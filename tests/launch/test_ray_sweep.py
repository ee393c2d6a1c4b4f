"""Sweeps through Ray, with real runs of a tiny random base."""

import json
import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="needs the extra `launch`")

from gistjax.config import CompressionConfig, ModelConfig
from gistjax.errors import ConfigError
from gistjax.sweep import read_sweep
from launch.plan import dry_run
from launch.ray_sweep import resources_of_a_run, start_ray
from tests.stress.kills import BAD, ENVIRONMENT, ROOT, SETTINGS, soak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a run dies with its worker by Linux's means")
def test_killed_workers_and_drivers_end_in_one_result_each(tmp_path, monkeypatch):
    """The short form of `kills.py`."""
    monkeypatch.setitem(SETTINGS, "batch_size", 2)
    found = soak(
        tmp_path,
        runs=1,
        steps=30,
        worker_kills=1,
        driver_kills=1,
        jobs=1,
        seed=0,
        pause=0.2,
        pattern="checkpoint/[1-9]*",
    )
    assert found["worker_kills"] == found["driver_kills"] == 1
    assert found["results"] == 1 and found["attempts"] >= 2
    assert not [key for key in BAD if found.get(key)], found


@pytest.mark.slow
def test_finished_runs_are_skipped_and_a_failed_one_is_reported_and_stops_none(tmp_path):
    entries = [
        {"name": "finished", "config": "configs/seed/gist_m64.py"},
        {"name": "broken", "config": "configs/seed/gist_m64.py", "set": {"data.path": "nowhere"}},
        {"name": "behind", "config": "configs/seed/gist_m64.py", "set": {"init_from": "@broken"}},
    ]
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"set": {"model.name": "tiny-random"}, "runs": entries}))
    config = read_sweep(path, tmp_path, [])[0].config().to_json()
    (tmp_path / "finished").mkdir()
    stored = json.dumps({"config": config, "base_sha256": "0" * 64})
    (tmp_path / "finished" / "config.json").write_text(stored)
    scores = {"final_f1": 0.5, "final_f1_interval": [0.4, 0.6]}
    metrics = json.dumps({**scores, "device": "1 x cpu", "steps": 1, "n_examples": 1, "seed": 0})
    (tmp_path / "finished" / "metrics.json").write_text(metrics)
    done = sweep(f"--sweep={path}", f"--out={tmp_path}")
    assert done.returncode == 1
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["finished"] == {"state": "finished", "attempts": 0, "final_f1": 0.5}
    assert found["broken"]["state"] == "failed" and found["broken"]["attempts"] == 1
    assert found["behind"]["state"] == "blocked"
    assert "there is no folder nowhere: " in done.stderr, "the end of its log"
    assert "python -m gistjax.train --config configs/seed/gist_m64.py" in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr, "quiet where there is no terminal"


@pytest.mark.slow
@pytest.mark.parametrize("metrics", ["{", "[]", '{"losses": {}}'])
def test_results_of_unknown_origin_or_damaged_are_refused_before_ray_starts(tmp_path, metrics):
    path = tmp_path / "sweep.json"
    run = {"name": "a", "config": "configs/seed/gist_m64.py", "set": {"model.name": "tiny-random"}}
    path.write_text(json.dumps({"runs": [run]}))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.json").write_text(metrics)
    if "losses" not in metrics:
        config = read_sweep(path, tmp_path, [])[0].config().to_json()
        stored = json.dumps({"config": config, "base_sha256": "0" * 64})
        (tmp_path / "a" / "config.json").write_text(stored)
    done = sweep(f"--sweep={path}", f"--out={tmp_path}")
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert ("config.json" if "losses" in metrics else "metrics.json is damaged") in done.stderr


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at --address=127.0.0.1:{port}"):
        start_ray(f"127.0.0.1:{port}")


def test_devices_of_a_run():
    laptop, server = {"CPU": 8.0}, {"CPU": 64.0, "GPU": 4.0}
    assert resources_of_a_run([laptop], -1, -1) == {"num_gpus": 0, "num_cpus": 8}
    assert resources_of_a_run([laptop, server], -1, -1) == {"num_gpus": 1, "num_cpus": 1}
    assert resources_of_a_run([laptop, server], 4, 16) == {"num_gpus": 4, "num_cpus": 16}
    assert resources_of_a_run([server], 0, 2) == {"num_gpus": 0, "num_cpus": 2}
    for gpus, cpus in ((8, -1), (0, 65), (1, 65)):
        with pytest.raises(ConfigError, match=rf"no machine has {gpus} GPUs"):
            resources_of_a_run([laptop, server], gpus, cpus)


def test_the_plan_says_what_is_known():
    tiny = CompressionConfig(model=ModelConfig(name="tiny-random"), max_steps=50)
    found = dry_run({"a": tiny, "b": tiny.replace(target_length=32)}, ["1", "4"], -1)
    assert found["runs"]["a"]["steps"] == 50 and found["runs"]["a"]["hours"] is None
    assert found["runs"]["a"]["memory_estimate_gib"]["total"] > 0
    assert [total["runs_at_a_time"] for total in found["totals"]] == [1, 2]
    for gpus in ("x", "0"):
        with pytest.raises(ConfigError, match="must be numbers"):
            dry_run({"a": tiny}, [gpus], -1)


def sweep(*flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.ray_sweep", *flags],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
