"""The SLURM scripts as far as they go without SLURM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path):
    entry = {
        "name": "M{target_length}",
        "config": "configs/seed/ablation.py",
        "grid": {"target_length": [8, 16]},
        "set": {"model.name": "tiny-random", "data.path": "no where", "ratios": [2, 4]},
    }
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"runs": [entry]}))
    return path


def bash(script, *arguments, **environment):
    # The `python` that the scripts find is this one.
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": here, **environment}
    return subprocess.run(
        ["bash", ROOT / "launch" / script, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_task_of_the_array_runs_its_command_into_its_log(sweep, tmp_path):
    done = bash(
        "slurm_array.sh", sweep, tmp_path / "out", "--config.seed=1", SLURM_ARRAY_TASK_ID="1"
    )
    assert done.returncode == 2, "the data is not there"
    log = (tmp_path / "out" / "M16" / "log.txt").read_text()
    assert "--config.target_length=16" in log and "--config.seed=1" in log
    assert "error: there is no folder no where: " in log


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_a_number_too_high_is_refused(sweep, tmp_path):
    (tmp_path / "out" / "M8").mkdir(parents=True)
    (tmp_path / "out" / "M8" / "metrics.json").write_text("{}")
    done = bash("slurm_array.sh", sweep, tmp_path / "out", SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/out/M8 is finished\n"
    done = bash("slurm_array.sh", sweep, tmp_path / "out", SLURM_ARRAY_TASK_ID="2")
    assert done.returncode and "there is no run of that number" in done.stderr


@pytest.mark.slow
def test_several_hosts_are_given_the_run_of_that_name(sweep, tmp_path):
    """`srun` is not here: what it would be given is said before."""
    done = bash("multi_host.sh", sweep, tmp_path, "M16")
    assert done.stdout.startswith(
        "python -m gistjax.train --config configs/seed/ablation.py --config.model.name=tiny-random"
    )
    assert done.stdout.endswith(f"--workdir={tmp_path}/M16 --distributed=auto\n")
    done = bash("multi_host.sh", sweep, tmp_path, "M17")
    assert done.returncode and "did you mean 'M16'" in done.stderr
