"""Sweeps through Ray, with real runs of a tiny random base."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="needs the extra `launch`")

from kills import BAD, ENVIRONMENT, ROOT, soak


@pytest.mark.skipif(sys.platform != "linux", reason="a run dies with its worker by Linux's means")
def test_killed_workers_and_drivers_end_in_one_result_each(tmp_path):
    """The short form of `kills.py`."""
    found = soak(
        tmp_path, runs=2, steps=30, worker_kills=1, driver_kills=1, jobs=2, seed=0, pause=0.2,
        pattern="checkpoint/[1-9]*",
    )  # fmt: skip
    assert found["worker_kills"] == found["driver_kills"] == 1
    assert found["results"] == 2
    assert not [key for key in BAD if found.get(key)], found


def test_finished_runs_are_skipped_and_a_failed_one_is_reported_and_stops_none(tmp_path):
    entries = [
        {"name": "finished", "config": "configs/gist_m64.py"},
        {"name": "broken", "config": "configs/gist_m64.py", "set": {"data.path": "nowhere"}},
        {"name": "behind", "config": "configs/gist_m64.py", "set": {"init_from": "@broken"}},
    ]
    study = tmp_path / "study.json"
    study.write_text(json.dumps({"set": {"model.name": "tiny-random"}, "runs": entries}))
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "metrics.json").write_text('{"final_f1": 0.5}')
    done = sweep(f"--study={study}", f"--out={tmp_path}")
    assert done.returncode == 1
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["finished"] == {"state": "finished", "attempts": 0, "final_f1": 0.5}
    assert found["broken"]["state"] == "failed" and found["broken"]["attempts"] == 1
    assert found["behind"]["state"] == "blocked"
    assert "nowhere/train.json is not there" in done.stderr, "the end of its log"
    assert "python -m gistjax.train --config configs/gist_m64.py" in done.stderr
    assert "\x1b" not in done.stderr, "quiet where there is no terminal"


def test_more_devices_than_there_are_is_refused(tmp_path):
    done = sweep("--study=launch/sweeps/seed.json", f"--out={tmp_path}", "--gpus_per_run=1000")
    assert done.returncode == 2 and "no machine has 1000 GPUs" in done.stderr
    assert "Traceback" not in done.stderr


def sweep(*flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.ablations", *flags],
        cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True,
    )  # fmt: skip
