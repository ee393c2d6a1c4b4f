import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.scaling import COLUMNS, line

ROOT = Path(__file__).parents[2]
ALONE = {"rows": 8, "step_ms": 50.0, "examples_per_s": 160.0, "peak_memory_gib": 20.0, "loss": 3.0}


def test_efficiency_is_against_as_many_that_work_alone():
    two = {**ALONE, "rows": 16, "examples_per_s": 240.0}
    cells = line("data", 2, two, ALONE)
    assert cells == ["data", "2", "16", "50.0", "240.0", "75.0%", "20.0", "3.0"]
    assert line("alone", 1, ALONE, None)[5] == ""


def test_a_failure_is_a_row_too():
    assert line("fsdp", 4, None, ALONE) == ["fsdp", "4", *["failed"] * (len(COLUMNS) - 2)]


@pytest.mark.slow
def test_a_mesh_is_measured_beside_one_device():
    command = [
        sys.executable,
        "-m",
        "launch.scaling",
        "--gpus=2",
        "--rows=1",
        "--layouts",
        "fsdp",
        "--",
        "--config.model.name=tiny-random",
        "--config.data.context_tokens=64",
        "--tokens=12",
        "--answer_tokens=4",
        "--config.loss_weights.generation=0",
        "--config.loss_weights.contrastive=0",
        "--repeats=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert [(r["layout"], r["gpus"], r["rows"]) for r in results] == [
        ("alone", 1, 1),
        ("alone", 1, 2),
        ("fsdp", 2, 2),
    ]
