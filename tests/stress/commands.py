"""Bad configurations and command lines: each is refused at once, with its cause and the nearest
valid name.

[key misspelt, for every key · value of the wrong type, for every key · out of range · contradictions · config files ·
 flags · missing inputs · the other commands]  ─▶  exit code 2, one line `error: …`, no weights
 loaded
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from gistjax import benchmark, compare, evaluate, sweep, train
from gistjax.config import CompressionConfig
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli

ROOT = Path(__file__).parents[2]
GIST = ("--config", "configs/seed/gist_m64.py")
TINY = (*GIST, "--config.model.name=tiny-random", "--config.data.path=sample")
COMMANDS: dict[str, tuple[Any, cli.Defaults | None]] = {
    "train": (train, None),
    "evaluate": (evaluate, lambda argv: RunDir(Path(cli.option(argv, "run"))).config()),
    "benchmark": (benchmark, lambda argv: benchmark.defaults()),
    "compare": (compare, lambda argv: CompressionConfig()),
    "sweep": (sweep, lambda argv: CompressionConfig()),
}
"""The module and the source of the configuration of each command."""

SECONDS = 5.0
"""A refusal may take so long."""


@dataclass(frozen=True)
class Case:
    """A command line, and what its refusal must say (a regular expression)."""

    says: str
    words: tuple[str, ...]
    command: str = "train"


def all_cases(folder: Path) -> list[Case]:
    """Every case, to be run in a folder, to which the files that they name are written."""
    (folder / "configs").symlink_to(ROOT / "configs")
    return [
        *misspelt(),
        *mistyped(),
        *out_of_range(),
        *contradictions(),
        *config_files(folder),
        *command_lines(),
        *sources(folder),
        *other_commands(folder),
    ]


def keys(group: object | None = None, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of the configuration and its default, groups left out."""
    group = CompressionConfig() if group is None else group
    for field in dataclasses.fields(group):  # type: ignore[arg-type]
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def misspelt() -> Iterator[Case]:
    """Each key with its first two letters exchanged, or one more at its end: the right one is
    named.
    """
    known = {key for key, _ in keys()}
    for key in sorted(known):
        group, _, name = key.rpartition(".")
        swapped = name[1] + name[0] + name[2:]
        wrong = swapped if swapped != name and len(name) > 4 else name + "s"
        path = f"{group}.{wrong}" if group else wrong
        if path not in known:
            yield Case(f"did you mean '{name}'", (*GIST, f"--config.{path}=1"))


def mistyped() -> Iterator[Case]:
    """Each key with a value that is not of its type: the key and the value are named."""
    for key, default in keys():
        if isinstance(default, dict):
            wrong, says = "3", "not a dict"
        elif isinstance(default, bool):
            wrong, says = "perhaps", "perhaps"
        elif isinstance(default, int | float):
            wrong, says = "many", "many"
        elif isinstance(default, tuple):
            wrong, says = "(1,'a',None)", "takes a"
        else:
            continue
        yield Case(
            rf"{re.escape(key)}.*{says}|{says}.*{re.escape(key)}",
            (*GIST, f"--config.{key}={wrong}"),
        )
    for name in CompressionConfig().loss_weights:
        yield Case(f"loss_weights.{name}", (*GIST, f"--config.loss_weights.{name}=half"))


OUT_OF_RANGE = {
    "target_length": ("0", "-3"), "batch_size": ("0", "-1"), "accumulation": ("0",), "max_steps": ("-2",),
    "contrastive_layers": ("-1",), "log_every": ("0",), "checkpoint_every": ("0", "-5"), "eval_every": ("0", "-2"),
    "epochs": ("-1", "inf", "nan"), "seed": ("-1", "99999999999999999999"), "ratio": ("0.5", "-1", "nan", "inf"),
    "ratio_growth": ("-0.1", "1.5", "nan"), "ratios": ("(0.5,)", "(4.0,2.0)", "(nan,)"),
    "lora.rank": ("-1",), "lora.alpha": ("nan", "-1", "inf", "0"), "lora.targets": ("('q','q')",),
    "encoder.layers": ("-2",), "encoder.lora.rank": ("-4",), "encoder.lora.alpha": ("nan",),
    "data.train_examples": ("-2",), "data.validation_examples": ("-7",), "data.context_tokens": ("0",),
    "data.questions_per_context": ("0",), "data.holdout": ("-0.5", "1", "nan"), "data.answer_tokens": ("1",),
    "data.max_dropped": ("-0.1", "1.5", "nan"),
    "data.context_buckets": ("()", "(0,512)", "(512,256)", "(512,512)", "(256,)"),
    "data.question_buckets": ("()", "(-1,)", "(64,30)"),
    "text.chunks": ("-2",), "text.min_tokens": ("0",), "text.target_tokens": ("1",), "text.reconstruction": ("-1",),
    "text.continuation": ("-1",), "text.cloze": ("-1",),
    "optimizer.compressor_lr": ("-1e-4", "nan", "inf"), "optimizer.lora_lr": ("-1", "nan"),
    "optimizer.warmup_fraction": ("-0.1", "1", "nan"), "optimizer.weight_decay": ("-1", "inf"),
    "optimizer.clip_norm": ("0", "-1", "nan"), "optimizer.b1": ("1", "-0.1", "nan"), "optimizer.b2": ("1", "-1"),
    "mesh.data": ("0", "-2"), "mesh.fsdp": ("0", "-3"), "mesh.tensor": ("0",),
    "evaluation.batch_size": ("0",), "evaluation.max_answer_tokens": ("0",), "evaluation.bootstrap_samples": ("0",),
    "evaluation.sample_predictions": ("-1",), "loss_weights.generation": ("-0.3", "nan", "inf"),
}  # fmt: skip


def out_of_range() -> Iterator[Case]:
    """Values that no run can have: the key is named, with what it may be."""
    for key, values in OUT_OF_RANGE.items():
        for value in values:
            yield Case(re.escape(key.split(".")[-1]), (*GIST, f"--config.{key}={value}"))
    choices = {
        "architecture": ("gits", "gist"), "slot_form": ("soft_token", "soft_tokens"), "slot_place": ("behnd", "behind"),
        "slot_start": ("window_mean", "window_means"), "slot_positions": ("pack", "packed"),
        "connector": ("liner", "linear"), "encoder.kind": ("hiden", "hidden"), "data.context": ("fill", "filled"),
        "data.select": ("frist", "first"), "model.dtype": ("bfloat", "bfloat16"), "model.attention": ("cudn", "cudnn"),
        "lora.targets": ("('gat',)", "gate"), "encoder.lora.targets": ("('dwn',)", "down"),
        "model.name": ("smollm2-135m-instrct", "smollm2-135m-instruct"),
    }  # fmt: skip
    for key, (wrong, right) in choices.items():
        yield Case(f"did you mean '{right}'", (*GIST, f"--config.{key}={wrong}"))


def contradictions() -> Iterator[Case]:
    """Values that are right alone and wrong together."""
    for says, *settings in (
        ("target_length=600 .*more than data.context_tokens", "target_length=600"),
        ("slot_form='key_values' needs slots", "architecture=none", "slot_form=key_values", "loss_weights.contrastive=0"),
        ("no slots for the contrastive loss", "architecture=closed_book"),
        ("slot_place='inside' needs slot_form", "slot_place=inside"),
        ("encoder.bidirectional=False", "slot_form=key_values", "encoder.kind=lora", "encoder.bidirectional=True"),
        ("encoder.kind='lora': the untuned base", "encoder.bidirectional=True"),
        ("pass through all layers: set encoder.kind='lora' or", "slot_form=key_values", "encoder.kind=hidden"),
        ("encoder.layers=-1", "slot_form=key_values", "encoder.kind=lora", "encoder.layers=4"),
        ("needs architecture='none'", "data.select=first"),
        ("encoder.lora.rank above 0", "encoder.kind=lora", "encoder.lora.rank=0"),
        ("give --config.text.path", "loss_weights.cloze=1"),
        ("text.cloze above 0", "loss_weights.cloze=1", "text.path=x", "text.cloze=0"),
        ("lower it", "loss_weights.cloze=1", "text.path=x", "text.min_tokens=600"),
        ("nothing to train on", *(f"loss_weights.{loss}=0" for loss in ("teacher_forcing", "generation", "contrastive"))),
        ("must hold data.context_tokens", "data.context_tokens=1024"),
        ("only one axis of mesh", "mesh.fsdp=-1"),
        ("answer_tokens=80 .*question_buckets", "data.answer_tokens=80"),
    ):  # fmt: skip
        yield Case(says, (*GIST, *(f"--config.{setting}" for setting in settings)))
    for says, *settings in (
        ("encoder.layers=5.* 2 layers", "encoder.layers=5", "encoder.kind=hidden"),
        ("mesh.tensor=3 takes a multiple of 3 devices", "mesh.tensor=3"),
        ("the base reads 2048 tokens", "data.context_tokens=2048", "data.context_buckets=(2048,)"),
        ("the prompt around a question takes", "data.question_buckets=(4,)", "data.answer_tokens=4"),
    ):  # fmt: skip
        yield Case(says, (*TINY, *(f"--config.{setting}" for setting in settings)))


CONFIG_FILES = {
    "syntax": ("def get_config(:\n", "SyntaxError"),
    "indented": ("def get_config():\nreturn 1\n", "IndentationError"),
    "empty": ("", "get_config"),
    "raises": ("def get_config():\n    raise RuntimeError('no')\n", "RuntimeError: no"),
    "at_import": ("1 / 0\n", "ZeroDivisionError"),
    "imports": ("import no_such_module\n", "no_such_module"),
    "none": ("def get_config():\n    return None\n", "get_config.*None"),
    "number": ("def get_config():\n    return 3\n", "get_config.*3"),
    "typo": (
        "from gistjax.config import CompressionConfig\n\n\ndef get_config():\n    return CompressionConfig(sed=1)\n",
        "did you mean 'seed'",
    ),
    "typo_in_group": (
        "from gistjax.config import DataConfig\n\n\ndef get_config():\n    return DataConfig(pth='x')\n",
        "did you mean 'path'",
    ),
    "other_dict": (
        "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({'sed': 1})\n",
        "did you mean 'seed'",
    ),
    "wrong_type": (
        "from gistjax.config import CompressionConfig\n\n\ndef get_config():\n"
        "    return CompressionConfig(seed='one').to_config_dict()\n",
        "'seed' takes a int",
    ),
    "parameters": ("def get_config(a, b):\n    return None\n", "get_config"),
}  # fmt: skip


def config_files(folder: Path) -> Iterator[Case]:
    """Files that are no configuration: the file is named, and what is wrong in it."""
    for name, (text, says) in CONFIG_FILES.items():
        path = folder / f"{name}.py"
        path.write_text(text)
        yield Case(says, ("--config", str(path)))
    binary = folder / "binary.py"
    binary.write_bytes(b"\x00\xff\xfe")
    for path in (binary, folder, folder / "absent.py", ROOT / "README.md"):
        yield Case(re.escape(path.name), ("--config", str(path)))
    yield Case("did you mean configs/gist_m64.py", ("--config", "configs/gist_m46.py"))
    yield Case("did you mean configs/seed/ablation.py:pooling,32", ("--config", "pooling_m32"))


def command_lines() -> Iterator[Case]:
    """Words that are no flags of the command."""
    for says, words in (
        ("which config", ()),
        ("no config file ''", ("--config",)),
        ("no config file ''", ("--config=",)),
        ("unexpected argument 'stray'", (*GIST, "stray")),
        ("unexpected argument 'config.seed=1'", (*GIST, "config.seed=1")),
        ("workdir", (*GIST, "--workdri=x")),
        ("dry_run", (*GIST, "--dry-run")),
        ("dry_run", (*GIST, "--dryrun")),
        ("dry_run", (*GIST, "--dry_run=perhaps")),
        ("traceback", (*GIST, "--tracebak")),
        ("workdir", (*GIST, "--workdir")),
        ("config.seed", (*GIST, "--config.seed")),
        ("config.seed", (*GIST, "--config.seed=")),
        ("no key ''", (*GIST, "--config.=1")),
        ("no key 'data.'", (*GIST, "--config.data.=1")),
        ("no key 'data.path.x'", (*GIST, "--config.data.path.x=1")),
        ("config.data", (*GIST, "--config.data=3")),
        ("config.lora", (*GIST, "--config.lora=16")),
        ("config.target_length", (*GIST, "--config.target_length=64.5")),
        ("config.target_length", (*GIST, "--config.target_length=6_4x")),
        ("config.seed", (*GIST, "--config.seed=1e3")),
        ("did you mean 'generation'", (*GIST, "--config.loss_weights.generaton=1")),
        ("data.context_buckets", (*GIST, "--config.data.context_buckets=1.5")),
        ("data.context_buckets", (*GIST, "--config.data.context_buckets=(1,")),
        ("data.context_buckets", (*GIST, "--config.data.context_buckets=__import__('os')")),
        ("twice", (*GIST, "--config", "configs/qa.py")),
    ):  # fmt: skip
        yield Case(says, words)


def sources(folder: Path) -> Iterator[Case]:
    """What a run reads is not there, or not what it should be: refused before weights are loaded."""
    made = folder / "sources"
    made.mkdir()
    (made / "file").write_text("x")
    (made / "weights.gguf").write_bytes(b"GGUF")
    for name, content in {
        "no_json": "{", "no_squad": "[]", "no_rows": '{"data": []}', "no_articles": '{"data": 3}',
        "no_answers": json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": []}]}]}),
    }.items():  # fmt: skip
        (made / name).mkdir()
        for split in ("train", "validation"):
            (made / name / f"{split}.json").write_text(content)
    (made / "only_train").mkdir()
    (made / "only_train" / "train.json").write_text(json.dumps(ONE_QUESTION))
    for says, key, value in (
        ("there is no folder .*absent:", "data.path", "absent"),
        ("sources/file is a file:", "data.path", "file"),
        ("cannot be read as JSON", "data.path", "no_json"),
        ("not in SQuAD v1.1 format", "data.path", "no_squad"),
        ("not in SQuAD v1.1 format", "data.path", "no_articles"),
        ("no usable question", "data.path", "no_rows"),
        ("no usable question", "data.path", "no_answers"),
        ("only_train has no validation.json, no ", "data.path", "only_train"),
        ("absent.*init_from", "init_from", "absent"),
        ("no_json/compressor.safetensors.*init_from", "init_from", "no_json"),
        ("neither a folder nor a .gguf file", "model.path", "file"),
        ("neither a folder nor a .gguf file", "model.path", "absent"),
        ("config.json is missing", "model.path", "no_json"),
        ("there is no file", "model.path", "absent.gguf"),
        ("not a whole GGUF file", "model.path", "weights.gguf"),
    ):  # fmt: skip
        path = f"{made}/{value}"
        yield Case(says, (*TINY, "--config.model.name=llama-3.2-1b-instruct", f"--config.{key}={path}"))  # fmt: skip
    for text in ("absent", "no_json", "file"):
        words = ("--config.loss_weights.cloze=1", f"--config.text.path={made}/{text}")
        yield Case(r"no folder with \*.jsonl", (*TINY, *words))
    yield Case("workdir", (*TINY, f"--workdir={made}/file"))
    yield Case("workdir", (*TINY, f"--workdir={made}/file/below"))
    damaged = made / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    yield Case("damaged/config.json", (*TINY, f"--workdir={damaged}"))


ONE_QUESTION = {
    "data": [{"title": "T", "paragraphs": [{
        "context": "The cat sat.", "qas": [{"id": "a", "question": "Who sat?", "answers": [{"text": "cat"}]}],
    }]}]
}  # fmt: skip


def other_commands(folder: Path) -> Iterator[Case]:
    """`evaluate`, `benchmark`, `compare` and `sweep`."""
    sweeps = folder / "sweeps"
    sweeps.mkdir()
    run = {"name": "a", "config": "configs/gist_m64.py"}
    for name, content in {
        "no_json": "{", "no_runs": "{}", "list": "[]", "no_name": json.dumps({"runs": [{"config": "x"}]}),
        "twice": json.dumps({"runs": [run, run]}),
        "typo": json.dumps({"runs": [{**run, "set": {"sed": 1}}]}),
        "no_config": json.dumps({"runs": [{**run, "config": "configs/gist_m46.py"}]}),
        "bad_value": json.dumps({"runs": [{**run, "set": {"target_length": 0}}]}),
        "good": json.dumps({"runs": [run]}),
    }.items():  # fmt: skip
        (sweeps / f"{name}.json").write_text(content)
    yield Case("--run is missing", (), "evaluate")
    yield Case("config.json", (f"--run={folder}/absent",), "evaluate")
    yield Case("config.json", (f"--run={folder}/sources/damaged",), "evaluate")
    yield Case("which runs", (), "compare")
    yield Case("which runs", (f"--of={folder}",), "compare")
    yield Case("predictions.json", (f"--of={folder}", f"--with={folder}"), "compare")
    yield Case("--mode", ("--mode=trian",), "benchmark")
    yield Case("leaves no question", ("--tokens=4", "--answer_tokens=9"), "benchmark")
    yield Case("repeats", ("--repeats=0",), "benchmark")
    yield Case("did you mean 'seed'", ("--config.sed=1",), "benchmark")
    for says, name in (
        ("no_json.json is not a sweep", "no_json"), ("not a sweep", "no_runs"), ("not a sweep", "list"),
        ("not a sweep", "no_name"), ("two runs of one name", "twice"), ("did you mean 'seed'", "typo"),
        ("did you mean configs/gist_m64.py", "no_config"), ("target_length=0", "bad_value"),
        ("there is no", "absent"),
    ):  # fmt: skip
        yield Case(says, (f"--sweep={sweeps}/{name}.json",), "sweep")
    yield Case("--only", (f"--sweep={sweeps}/good.json", "--only=b"), "sweep")


def refuse(case: Case) -> str:
    """Runs a command in this process; returns what is wrong with its refusal, or nothing."""
    module, defaults = COMMANDS[case.command]
    out, error = io.StringIO(), io.StringIO()
    argv = [case.command, *case.words]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(logging, "basicConfig"),
        mock.patch(
            "gistjax.experiment.base.load_base", side_effect=AssertionError("weights are loaded")
        ),
        redirect_stdout(out),
        redirect_stderr(error),
    ):
        try:
            cli.run(module.main, module.define_flags, defaults)
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException as wrong:
            return f"{' '.join(argv)}: {type(wrong).__name__}: {wrong}"
    return verdict(case, code, out.getvalue(), error.getvalue())


def verdict(case: Case, code: object, out: str, error: str) -> str:
    """What is wrong with a refusal, or nothing."""
    command = " ".join((case.command, *case.words))
    last = next((line for line in error.splitlines() if line.startswith("error: ")), "")
    if code != 2 or not last or "Traceback" in error or out:
        return f"{command}: exit code {code}, {error[-300:]!r}, {out[-100:]!r}"
    if not re.search(case.says, error[error.index(last) :], re.DOTALL):
        return f"{command}: does not say {case.says!r}: {error[-400:]!r}"
    return ""


def refuse_in_a_process(case: Case, folder: Path) -> tuple[str, float]:
    """The same by a process of its own, with its seconds from start to end."""
    start = time.monotonic()
    command = [sys.executable, "-m", f"gistjax.{case.command}", *case.words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120
    )
    return verdict(case, done.returncode, done.stdout, done.stderr), time.monotonic() - start
