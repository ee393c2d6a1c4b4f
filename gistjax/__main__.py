"""`gistjax COMMAND`, the same as `python -m gistjax.COMMAND`; alone it lists the commands."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import gistjax
from gistjax.errors import ConfigError, did_you_mean
from gistjax.runtime import cli

COMMANDS = (
    "ask",
    "store",
    "serve",
    "train",
    "evaluate",
    "calibrate",
    "sweep",
    "compare",
    "report",
    "export",
    "benchmark",
    "questions",
    "average",
    "profile",
    "doctor",
)
"""Modules with a command line, those that most people need first."""


USAGE = """\
  gistjax COMMAND --help     what a command does, and its flags
  gistjax COMMAND [flags]    the same as python -m gistjax.COMMAND [flags]"""


def main() -> None:
    """Run the command that the first argument names; without one, list them."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[1:] = rest
        runpy.run_module(f"gistjax.{name}", run_name="__main__", alter_sys=True)
    else:
        cli.guard(lambda: _without_command(name))


def _without_command(word: str) -> None:
    """Print the version or the list of commands.

    Raises:
        ConfigError: for any other word.
    """
    if word == "--version":
        print(gistjax.__version__)
    elif word in cli.HELP:
        print(overview())
    else:
        hint = did_you_mean(word, COMMANDS)
        raise ConfigError(f"gistjax has no command {word!r}{hint} `gistjax` alone lists them all.")


def overview() -> str:
    """Return the commands, each with the first line of its description."""
    lines = [f"  {name:11} {_first_line(name)}" for name in COMMANDS]
    return "\n".join([f"gistjax {gistjax.__version__}", "", USAGE, "", *lines])


def _first_line(command: str) -> str:
    """Return the first line of a command's docstring, which is read without importing it."""
    source = (Path(__file__).parent / f"{command}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


if __name__ == "__main__":
    main()
