"""Kills workers and drivers of a sweep at random, starts it again, and checks what is there in the
end.

    python -m tests.stress.kills --jobs 16 --runs 12 --worker_kills 100 --driver_kills 20

Every run is real: a tiny random base, trained and checkpointed by `gistjax.train`. In the end each
must have its results once, have logged each step once, and hold the same bytes as a run that nobody
disturbed. `test_ray_sweep.py` has the short form. From the repository's root, on Linux; the last
line of output is JSON, the exit code 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "model.name": "tiny-random", "model.dtype": "float32", "lora.rank": 2, "epochs": 1000,
    "accumulation": 1, "batch_size": 8, "checkpoint_every": 1, "log_every": 1, "target_length": 8,
    "contrastive_layers": 1, "loss_weights.generation": 0, "data.path": "sample",
    "data.context": "paragraph", "data.context_buckets": [512], "data.question_buckets": [256],
    "data.validation_examples": 0,
}  # fmt: skip
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0"),
    "RAY_memory_monitor_refresh_ms": "0",  # this machine may be full of other work
}
BAD = (
    "results_missing", "results_twice", "steps_missing_or_twice", "left_running",
    "differs_from_undisturbed",
)  # fmt: skip


def write_sweep(folder: Path, runs: int, steps: int) -> Path:
    """Return the file of a sweep whose runs differ in their seed."""
    entry = {
        "name": "run_{seed}",
        "config": "configs/seed/ablation.py:pooling,64",
        "grid": {"seed": list(range(runs))},
    }
    path = folder / "sweep.json"
    path.write_text(json.dumps({"set": {**SETTINGS, "max_steps": steps}, "runs": [entry]}))
    return path


def start_driver(sweep: Path, out: Path, jobs: int, log: Path) -> subprocess.Popen[bytes]:
    """`launch.ray_sweep` with so many runs at a time."""
    command = [
        sys.executable, "-m", "launch.ray_sweep", f"--sweep={sweep}", f"--out={out}",
        f"--cpus_per_run={(os.cpu_count() or 1) / jobs:.4f}",
    ]  # fmt: skip
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=file
        )


def trainers(out: Path, pattern: str = "*") -> list[psutil.Process]:
    """The processes that train a run of this folder in whose directory something has that name."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        folder = Path(words[-1].removeprefix("--workdir="))
        if "gistjax.train" in words and folder.parent == out and any(folder.glob(pattern)):
            found.append(process)
    return found


def kill_a_worker(out: Path, rng: random.Random, pattern: str) -> bool:
    """SIGKILL to the Ray worker above some trainer; False where none is at work."""
    alive = trainers(out, pattern)
    try:
        worker = rng.choice(alive).parent() if alive else None
        if worker is None or not worker.name().startswith("ray::"):
            return False
        worker.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def soak(
    folder: Path,
    runs: int,
    steps: int,
    worker_kills: int,
    driver_kills: int,
    jobs: int,
    seed: int,
    pause: float,
    pattern: str = "*",
) -> dict[str, Any]:
    """Runs a sweep under kills until it is finished; returns what was done and found.

    Kills of the driver are spread evenly among those of workers.

    Args:
        pause: mean seconds between kills.
        pattern: kill only while something in the run's directory has such a name.
    """
    rng, begin = random.Random(seed), time.monotonic()
    sweep, out, log = write_sweep(folder, runs, steps), folder / "out", folder / "driver.log"
    workers = drivers = 0
    driver = start_driver(sweep, out, jobs, log)
    while driver.poll() is None and workers + drivers < worker_kills + driver_kills:
        time.sleep(pause * rng.uniform(0.5, 1.5))
        due = drivers < driver_kills and workers >= worker_kills * (drivers + 1) // (
            driver_kills + 1
        )
        if due and trainers(out, pattern):
            driver.kill()
            driver.wait()
            drivers += 1
            driver = start_driver(sweep, out, jobs, log)
        elif workers < worker_kills:
            workers += kill_a_worker(out, rng, pattern)
    for _ in range(10):  # kills without a checkpoint between them may have set runs aside
        if driver.wait() == 0:
            break
        driver = start_driver(sweep, out, jobs, log)
    found = {"worker_kills": workers, "driver_kills": drivers, **examine(out, runs, steps)}
    return {**found, "minutes": round((time.monotonic() - begin) / 60, 2)}


def examine(out: Path, runs: int, steps: int) -> dict[str, int]:
    """Counts attempts and results, and what should not be."""
    folders = sorted(out.glob("run_*"))
    logs = [(folder / "log.txt").read_text() for folder in folders]
    logged = [
        [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    return {
        "attempts": sum(log.count("--- 20") for log in logs),
        "results": sum((folder / "metrics.json").exists() for folder in folders),
        "results_missing": runs - sum((folder / "metrics.json").exists() for folder in folders),
        "results_twice": sum(log.count('\n{"architecture"') > 1 for log in logs),
        "steps_missing_or_twice": sum(found != list(range(1, steps + 1)) for found in logged),
        "left_running": len(trainers(out)),
    }


def undisturbed_differs(folder: Path, steps: int) -> int:
    """Whether the first run's trained leaves are other than those of the same run without kills."""
    sweep = write_sweep(folder, 1, steps)
    driver = start_driver(sweep, folder / "undisturbed", 1, folder / "driver.log")
    assert driver.wait() == 0
    name = "run_0/compressor.safetensors"
    ours, theirs = ((folder / out / name).read_bytes() for out in ("out", "undisturbed"))
    return int(_tensors(ours) != _tensors(theirs))


def _tensors(data: bytes) -> bytes:
    """A safetensors file behind its header, which names the directory's settings."""
    return data[8 + int.from_bytes(data[:8], "little") :]


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=150, help="of each run")
    parser.add_argument("--worker_kills", type=int, default=100)
    parser.add_argument("--driver_kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = soak(
            Path(name), args.runs, args.steps, args.worker_kills, args.driver_kills, args.jobs, args.seed,
            args.pause,
        )  # fmt: skip
        found["differs_from_undisturbed"] = undisturbed_differs(Path(name), args.steps)
        bad = [key for key in BAD if found[key]]
        if bad:
            print((Path(name) / "driver.log").read_text()[-5000:], file=sys.stderr)
    print(json.dumps(found))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
