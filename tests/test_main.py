"""`gistjax COMMAND`, and what `import gistjax` gives."""

import subprocess
import sys
from pathlib import Path

import pytest

import gistjax
from gistjax import __main__ as command
from gistjax.inference.engine import Engine

PACKAGE = Path(gistjax.__file__).parent


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "gistjax", *words], capture_output=True, text=True, timeout=120
    )


def test_every_command_is_listed_with_its_first_line():
    modules = {path.stem for path in PACKAGE.glob("*.py") if "cli.run" in path.read_text()}
    assert set(command.COMMANDS) == modules - {"__main__"}
    lines = command.overview().splitlines()
    assert lines[0] == f"gistjax {gistjax.__version__}"
    for name in command.COMMANDS:
        line = next(line for line in lines if line.startswith(f"  {name} "))
        assert len(line.removeprefix(f"  {name} ").strip()) > 10, line


def test_alone_it_lists_the_commands(monkeypatch, capsys):
    for words in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["gistjax", *words])
        command.main()
        assert capsys.readouterr().out.strip() == command.overview()
    monkeypatch.setattr(sys, "argv", ["gistjax", "--version"])
    command.main()
    assert capsys.readouterr().out.strip() == gistjax.__version__


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["trian"], 2, "no command 'trian'; did you mean 'train'?"),
        (["train"], 2, "which config?"),
        (["train", "--config=configs/gist_m64.py", "--config.sed=1"], 2, "did you mean 'seed'?"),
    ],
)
def test_mistakes_are_those_of_the_command(words, code, says):
    done = run(*words)
    assert (done.returncode, done.stdout) == (code, "") and says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_help_is_that_of_the_command():
    theirs = subprocess.run(
        [sys.executable, "-m", "gistjax.compare", "--help"], capture_output=True, text=True
    )
    assert run("compare", "--help").stdout == theirs.stdout and theirs.returncode == 0


def test_names_are_listed_before_they_are_imported():
    assert set(gistjax.__all__) <= set(dir(gistjax)) and "__version__" in dir(gistjax)
    assert gistjax.Engine is Engine
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        gistjax.lode  # noqa: B018


@pytest.mark.slow
def test_importing_is_quick_and_defines_no_flag():
    """JAX comes with the first name that needs it."""
    code = (
        "import sys, gistjax; assert 'jax' not in sys.modules; gistjax.load\n"
        "from absl import flags; assert 'workdir' not in flags.FLAGS"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stdout + done.stderr
