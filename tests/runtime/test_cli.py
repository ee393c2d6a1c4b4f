import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from gistjax.errors import ConfigError
from gistjax.runtime import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def parse(*words, monkeypatch=None):
    argv = ["train", *words]
    sys.argv = argv
    values = flags.FlagValues()
    flags.DEFINE_bool("dry_run", False, "", values)
    flags.DEFINE_string("workdir", "", "", values)
    return cli.parse(argv, values=values)


def test_overrides_are_typed():
    config = parse(
        "--config=configs/gist_m64.py",
        "--config.target_length=32",
        "--config.epochs=2",
        "--config.loss_weights.generation=0",
        "--config.data.context_buckets=(256,512)",
        "--config.model.path=random",
        "--config.evaluation.baseline=false",
    )
    assert (config.target_length, config.epochs, config.model.path) == (32, 2.0, "random")
    assert config.loss_weights["generation"] == 0.0
    assert config.data.context_buckets == (256, 512)
    assert config.evaluation.baseline is False


@pytest.mark.parametrize(
    "words",
    [
        ("--config", "configs/seed/ablation.py:pooling,32", "--config.seed=1"),
        ("--config.seed=1", "--config", "configs/seed/ablation.py:pooling,32"),
        (
            "--dry_run",
            "--config.seed=1",
            "--config=configs/seed/ablation.py:pooling,32",
            "--workdir",
            "x",
        ),
    ],
)
def test_the_order_of_flags_does_not_matter(words):
    config = parse(*words)
    assert (config.architecture, config.target_length, config.seed) == ("pooling", 32, 1)


def test_the_last_of_repeated_overrides_counts():
    ratios = ("--config.ratios=(2.,4.)", "-config.ratios=(8.,)")
    config = parse("--config=configs/qa.py", *ratios, "--config.seed=1", "--config.seed=2")
    assert (config.ratios, config.seed) == ((8.0,), 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "which config"),
        (["--config"], "no config file ''"),
        (["--config=configs/gist_m46.py"], "did you mean configs/gist_m64.py"),
        (["--config=configs/gist_m64.py", "--config.sed=1"], "did you mean 'seed'"),
        (["--config=configs/gist_m64.py", "--config.data.pathh=x"], "did you mean 'path'"),
        (
            ["--config=configs/gist_m64.py", "--config.loss_weights.generaton=1"],
            "did you mean 'generation'",
        ),
        (["--config=configs/gist_m64.py", "--config.seed=x"], "config.seed=x"),
        (["--config=configs/gist_m64.py", "--config.seed=1.5"], "config.seed=1.5"),
        (["--config=configs/gist_m64.py", "--config.model.scan_layers=perhaps"], "scan_layers"),
        (["--config=configs/gist_m64.py", "--config.data=3"], "config.data"),
        (["--config=configs/gist_m64.py", "--workdri=x"], "workdir"),
        (["--config=configs/gist_m64.py", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_named_with_the_nearest_right_one(words, says):
    with pytest.raises(ConfigError, match=says):
        parse(*words)


def run(*words):
    start = time.monotonic()
    command = [sys.executable, "-m", "gistjax.train", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return done, time.monotonic() - start


@pytest.mark.slow
def test_a_users_mistake_exits_with_2_and_no_traceback():
    done, _ = run("--config=configs/gist_m64.py", "--config.target_length=9999")
    assert done.returncode == 2
    assert done.stderr.startswith("error: target_length=9999")
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_output_that_nobody_reads_is_no_error():
    """As with `| head`: the reader is gone before the command prints."""
    code = (
        "from gistjax.runtime import cli\n"
        "def command():\n"
        "    while True: print('x' * 99_999, flush=True)\n"
        "cli.guard(command)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 1


@pytest.mark.slow
def test_traceback_on_request():
    done, _ = run("--config=configs/gist_m64.py", "--config.target_length=9999", "--traceback")
    assert done.returncode != 0 and "Traceback" in done.stderr


@pytest.mark.slow
def test_dry_run_of_8b_touches_no_weights_and_prints_one_json_line():
    done, _ = run("--config=configs/seed/gist_m64.py", "--dry_run")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["parameters"]["base"] == 8_030_261_248
    assert abs(result["compressor_parameters"] - 134.2e6) <= 0.05 * 134.2e6
    assert result["config"]["target_length"] == 64
    assert result["memory_estimate_gib"]["base"] == pytest.approx(14.96, abs=0.01)


@pytest.mark.slow
def test_help_names_the_flags_and_on_request_the_keys():
    done, _ = run("--help")
    assert (
        "--workdir" in done.stdout and "--dry_run" in done.stdout and "--traceback" in done.stdout
    )
    assert "--config.seed" not in done.stdout and "absl" not in done.stdout
    done, _ = run("--helpfull")
    assert "keys, with their defaults:" in done.stdout
    assert "--config.seed=42" in done.stdout and "--config.data.context_tokens=512" in done.stdout


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_result_is_json_for_programs_and_a_table_for_people(monkeypatch, capsys):
    cli.print_result({"f1": 0.5}, "F1 0.500")
    assert json.loads(capsys.readouterr().out) == {"f1": 0.5}
    monkeypatch.setattr(sys, "stdout", Terminal())
    cli.print_result({"f1": 0.5}, "F1 0.500")
    cli.print_result({"em": 0.25})
    assert sys.stdout.getvalue() == 'F1 0.500\n{"em": 0.25}\n'


def test_colours_are_for_terminals(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.coloured("bad", "red", io.StringIO()) == "bad"
    assert cli.coloured("bad", "red", Terminal()) == "\033[31mbad\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.coloured("bad", "red", Terminal()) == "bad"
