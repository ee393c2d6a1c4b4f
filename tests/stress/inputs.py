"""python -m tests.stress.inputs [--only commands,rows,hostile,scores,peft] [--share S]

The full form of the trials of bad and hostile inputs and of exports, of which `test_inputs.py` is a
short one. Progress goes to standard error; the last line of standard output is one JSON object.
`--share 0.1` makes a tenth of the drawn trials.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import commands, rows

PROCESSES = 24
"""Refusals that are timed by a process each."""


def bad_commands(folder: Path, share: float) -> dict[str, Any]:
    """All cases in this process, and some evenly chosen ones by processes of their own."""
    os.chdir(folder)
    cases = commands.all_cases(folder)
    failed = [failure for case in cases if (failure := commands.refuse(case))]
    seconds = []
    for case in cases[:: max(len(cases) // round(PROCESSES * share), 1)]:
        failure, duration = commands.refuse_in_a_process(case, folder)
        seconds.append(round(duration, 2))
        failed += [failure] if failure else []
    slow = sum(duration >= commands.SECONDS for duration in seconds)
    return {
        "trials": len(cases),
        "processes": len(seconds),
        "seconds": sorted(seconds),
        "slower_than_5_s": slow,
        **failures(failed),
    }


def bad_rows(folder: Path, share: float) -> dict[str, Any]:
    """10,000 questions and 10,000 lines of text, 1,000 a file."""
    failed: list[str] = []
    seeds = range(round(10 * share))
    for seed in seeds:
        for fuzz in (rows.fuzz_questions, rows.fuzz_lines):
            below = folder / f"{fuzz.__name__}{seed}"
            below.mkdir()
            failed += fuzz(seed, below, 1000)
    return {"trials": 2000 * len(seeds), "classes": rows.classes(), **failures(failed)}


def hostile_files(folder: Path, share: float) -> dict[str, Any]:
    """All cases, and 4,000 fuzzed GGUF and safetensors files."""
    return hostile(folder, round(4000 * share))


def hostile(folder: Path, fuzzed: int) -> dict[str, Any]:
    """What `tests.stress.hostile` finds, in a process of its own."""
    command = [sys.executable, "-m", "tests.stress.hostile", str(folder), str(fuzzed), "0"]
    environment = {**os.environ, "PYTHONPATH": str(commands.ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=commands.ROOT, env=environment, check=False
    )
    if done.returncode:
        return {"trials": 0, **failures([done.stderr[-2000:]])}
    found = json.loads(done.stdout.splitlines()[-1])
    return {"trials": found["cases"] + found["fuzzed"], **found, **failures(found["failed"])}


def squad_scores(folder: Path, share: float) -> dict[str, Any]:
    """Thirteen predictions of every validation question; answers of random and of trained weights
    at three batch sizes.
    """
    from . import scores

    examples = scores.questions()
    number, failed = scores.check_scores(examples, 0)
    compared, differing = scores.check_torchmetrics(examples, 0)
    tiny = scores.answers_at(scores.tiny_config(), None)
    real = scores.answers_at(*scores.trained(round(50 * share)))
    failed += differing + scores.check_batches(tiny) + scores.check_batches(real)
    return {
        "trials": number,
        "questions": len(examples),
        "compared_with_torchmetrics": compared,
        "f1_at_batch": {batch: row["f1"] for batch, row in real.items()},
        "em_at_batch": {batch: row["em"] for batch, row in real.items()},
        "answers": len(real[1]["answers"]),
        **failures(failed),
    }


def adapters(folder: Path, share: float) -> dict[str, Any]:
    """100 prompts for each of two adapters on the real SmolLM2."""
    from . import peft

    found = peft.smollm2(folder, round(100 * share))
    failed = [
        f"{name}: {row}"
        for name, row in found.items()
        if row["largest_difference"] > peft.TOLERANCE or row["equal_answers"] < row["prompts"]
    ]
    trials = sum(row["prompts"] for row in found.values())
    return {"trials": trials, "tolerance": peft.TOLERANCE, **found, **failures(failed)}


def failures(failed: list[str]) -> dict[str, Any]:
    """How many trials failed, and the first few."""
    return {"failures": len(failed), "failed": failed[:5]}


ALL: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "commands": bad_commands,
    "rows": bad_rows,
    "hostile": hostile_files,
    "scores": squad_scores,
    "peft": adapters,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.inputs", description=__doc__)
    parser.add_argument("--only", default=",".join(ALL))
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of trials")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = {}
    for name in arguments.only.split(","):
        with tempfile.TemporaryDirectory(prefix=name) as folder:
            begin = time.monotonic()
            found[name] = ALL[name](Path(folder), arguments.share)
            found[name]["minutes"] = round((time.monotonic() - begin) / 60, 2)
        print(name, found[name], file=sys.stderr, flush=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"machine": machine, "trials": found}))
    sys.exit(any(row["failures"] for row in found.values()))


if __name__ == "__main__":
    main()
