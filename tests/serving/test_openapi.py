"""What `/openapi.json` says is true: schemathesis asks what may be asked, and what may not."""

import subprocess
import sys

import pytest

import gistjax

UNTESTED = "positive_data_acceptance"  # a question that no text has a word of is refused, too

CONFIG = """
[generation]
deterministic = true
[checks.negative_data_rejection]
expected-statuses = [400, 404, 405, 413]
"""


@pytest.mark.parametrize(
    "examples", [pytest.param(15, id="few"), pytest.param(1000, id="many", marks=pytest.mark.long)]
)
@pytest.mark.slow
def test_every_reply_is_as_documented(start, store, tmp_path, examples):
    own = gistjax.Store(tmp_path / "store", store.engine)
    own.add("mill", "The mill was built by Anneke Dursel.")
    client = start(store=own)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    asked = subprocess.run(
        [sys.executable, "-c", "import schemathesis.cli as c; c.schemathesis()", "run"]
        + [f"http://127.0.0.1:{client.port}/openapi.json", "--exclude-checks", UNTESTED]
        + ["--max-examples", str(examples), "--warnings", "off"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
