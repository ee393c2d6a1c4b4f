"""In a real bash: what TAB gives."""

import subprocess
import sys

import pytest

from gistjax import completion


@pytest.fixture(scope="module")
def script():
    command = [sys.executable, "-m", "gistjax.completion"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def complete(script, line):
    """The candidates for a line whose last word is being typed."""
    probe = """
words=($1); [[ "$1" == *" " ]] && words+=("")
compopt() { :; }
COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); COMPREPLY=()
_gistjax; printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", script + probe, "bash", line], capture_output=True, text=True
    )
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("python -m gistjax.tra", {"gistjax.train"}),
        ("python -m gistjax.train --work", {"--workdir"}),
        ("python -m gistjax.train --config.optimizer.c", {
            "--config.optimizer.compressor_lr=", "--config.optimizer.clip_norm=",
        }),
        ("python -m gistjax.ask --context text.txt --f", {"--full"}),
        ("python -m gistjax.train configs/gi", set()),
        ("python -m pytest --co", set()),
        ("python scri", set()),
    ],
)  # fmt: skip
def test_tab(script, line, candidates):
    assert set(complete(script, line)) == candidates


def test_every_command_is_there(script):
    assert {"gistjax.train", "gistjax.ask", "gistjax.doctor"} <= set(completion.commands())
    assert "gistjax.config" not in completion.commands()
