import json
import subprocess
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[2] / "launch" / "peers.py"


@pytest.mark.slow
def test_our_side_runs_and_the_last_line_is_json():
    done = subprocess.run(
        [sys.executable, PEERS, "--works", "train_tiny", "--peers"],
        capture_output=True,
        text=True,
        check=True,
    )
    *table, last = done.stdout.splitlines()
    assert table[-1].startswith("train_tiny: gistjax ")
    assert json.loads(last)["train_tiny"]["gistjax"]["step_ms"] > 0
