"""python -m tests.stress [--jobs N] [--only NAME,…] [--share S] [--first N]

The full form of the trials, of which `test_faults.py` is a short one. Progress goes to standard
error; the last line of
standard output is one JSON object: trials, failures, and what came of them. `--share 0.1` makes a
tenth of the trials. `gpu` is not among the default ones, and goes alone: it kills runs of a larger
random model on the GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import disk, files, flips, health, kill, locks, packed, signals, stores
from .outcome import Outcome, outcome
from .pool import side_by_side
from .process import call, train

GPU = (
    "--config.model.path=random",
    "--config.model.dtype=bfloat16",
    "--config.lora.rank=16",
    "--config.epochs=3.0",
)


class Trials:
    """Trials of this command: how many, how many at a time, and where."""

    def __init__(self, folder: Path, jobs: int, share: float, first: int, gpu_model: str):
        self.folder, self.jobs, self.share, self.first = folder, jobs, share, first
        self.gpu_overrides = (*GPU, f"--config.model.name={gpu_model}")

    def number(self, full: int) -> range:
        """So many of the full number, from the first on."""
        return range(self.first, self.first + max(round(full * self.share), 1))

    @functools.cached_property
    def undisturbed(self) -> Outcome:
        """What the run leaves if nothing happens to it."""
        return self.reference("undisturbed")

    @functools.cached_property
    def seconds(self) -> float:
        """How long a run takes, all programs compiled."""
        _ = self.undisturbed
        return train(self.folder / "timed").seconds

    def reference(self, name: str, *overrides: str) -> Outcome:
        """What a run leaves that nothing happens to."""
        ended = train(self.folder / name, overrides)
        assert ended.code == 0, ended.output
        return outcome(self.folder / name)

    def kill(self) -> dict[str, Any]:
        """Row by row: 300 kills over 60 runs."""
        return self._kills(self.number(60), 5, self.jobs)

    def gpu(self) -> dict[str, Any]:
        """30 kills over 6 runs of a larger model on the GPU, four at a time, and twice the
        undisturbed run.
        """
        overrides = self.gpu_overrides
        self.undisturbed = self.reference("gpu", *overrides)
        again = self.reference("gpu2", *overrides)
        self.seconds = train(self.folder / "gpu3", overrides).seconds
        found = self._kills(self.number(6), 5, min(self.jobs, 4), overrides)
        return {**found, "same_without_kills": again == self.undisturbed}

    def _kills(self, seeds: range, kills: int, jobs: int, overrides: tuple[str, ...] = ()) -> Any:
        trial = functools.partial(
            kill.trial,
            kills=kills,
            folder=self.folder,
            undisturbed=self.undisturbed,
            seconds=self.seconds,
            overrides=overrides,
        )
        rows = side_by_side(jobs, trial, seeds)
        killed = sum((row["killed"] for row in rows), Counter())
        return {"runs": len(rows), "trials": killed.total(), "seen": killed, **failures(rows)}

    def signals(self) -> dict[str, Any]:
        """50 signals."""
        undisturbed = self.reference("signalled", *signals.OFTEN)
        # Within a third of a run after the first step: it then still trains.
        trial = functools.partial(
            signals.trial, folder=self.folder, undisturbed=undisturbed, seconds=self.seconds / 3
        )
        rows = side_by_side(self.jobs, trial, self.number(50))
        seen = Counter(f"{row['signal']}: exit code {row['code']}" for row in rows)
        lost = max(row.get("lost", 0) for row in rows)
        return {"trials": len(rows), "seen": seen, "most_steps_lost": lost, **failures(rows)}

    def flips(self) -> dict[str, Any]:
        """1,000 flipped bits."""
        _ = self.undisturbed
        source = self.folder / "flipped"
        source.mkdir()
        call(flips.prepare, self.folder / "undisturbed", source)
        seeds = list(self.number(1000))
        shares = [seeds[i :: self.jobs] for i in range(min(self.jobs, len(seeds)))]
        rows = side_by_side(
            self.jobs, lambda share: call(flips.trials, share, source, self.folder), shares
        )
        failed = [failure for row in rows for failure in row["failures"]]
        seen = sum((row["seen"] for row in rows), Counter())
        return {"trials": len(seeds), "seen": seen, "failures": len(failed), "failed": failed[:5]}

    def packed(self) -> dict[str, Any]:
        """10,000 flipped bits and 500 cuts in documents of few bits."""
        folder = self.folder / "packed"
        folder.mkdir()
        seeds = list(self.number(10_500))
        found = call(packed.trials, seeds, folder)
        seen = Counter(name.split(",")[0] for name in found["seen"].elements())
        failed = found["failures"]
        return {
            "trials": len(seeds),
            "seen": seen,
            "in_each": found["seen"],
            "failures": len(failed),
            "failed": failed[:5],
        }

    def files(self) -> dict[str, Any]:
        """500 damaged run directories."""
        _ = self.undisturbed
        source = self.folder / "interrupted"
        files.prepare(source)
        trial = functools.partial(
            files.trial, source=source, folder=self.folder, undisturbed=self.undisturbed
        )
        return self._seen(side_by_side(self.jobs, trial, self.number(500)), "came")

    def disk(self) -> dict[str, Any]:
        """At each writing call: a full disk from there on (ENOSPC), or an I/O error there (EIO), in
        turn.
        """
        if not disk.is_preloaded():
            return {"trials": 0, "failures": 0, "skipped": "no C compiler"}
        calls = disk.writing_calls(self.folder / "counted")
        undisturbed = outcome(self.folder / "counted")
        points = random.Random(self.first).sample(range(calls), len(self.number(calls)))
        trial = functools.partial(disk.trial, folder=self.folder, undisturbed=undisturbed)
        found = self._seen(side_by_side(self.jobs, trial, points), "code")
        return {"writing_calls": calls, **found}

    def health(self) -> dict[str, Any]:
        """24 runs with one bad step."""
        undisturbed = self.reference("healthy", *health.STOPPING)
        trial = functools.partial(health.trial, folder=self.folder, undisturbed=undisturbed)
        return self._seen(side_by_side(self.jobs, trial, self.number(24)), "came")

    def locks(self) -> dict[str, Any]:
        """50 times two runs in one directory."""
        trial = functools.partial(locks.trial, folder=self.folder, undisturbed=self.undisturbed)
        return self._seen(side_by_side(self.jobs, trial, self.number(50)), "came")

    def stores(self) -> dict[str, Any]:
        """300 kills of what writes to a store."""
        seeds = list(self.number(300))
        folder = self.folder / "stores"
        found = call(stores.trials, seeds, folder)
        failed = found["failures"]
        seen = found["seen"]
        return {"trials": len(seeds), "seen": seen, "failures": len(failed), "failed": failed[:5]}

    def _seen(self, rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
        return {"trials": len(rows), "seen": Counter(row[key] for row in rows), **failures(rows)}


def failures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many trials failed, and the first few."""
    failed = [row["failure"] for row in rows if row["failure"]]
    return {"failures": len(failed), "failed": failed[:5]}


ALL: dict[str, Callable[[Trials], dict[str, Any]]] = {
    "kill": Trials.kill,
    "signals": Trials.signals,
    "flips": Trials.flips,
    "packed": Trials.packed,
    "files": Trials.files,
    "disk": Trials.disk,
    "health": Trials.health,
    "locks": Trials.locks,
    "stores": Trials.stores,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default=",".join(ALL), help="some of these, or gpu")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of trials")
    parser.add_argument("--first", type=int, default=0, help="trial: others than those made before")
    parser.add_argument("--gpu_model", default="smollm2-135m-instruct", help="its sizes, random")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="faults") as name:
        folder = Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
        os.environ.setdefault("JAX_PLATFORMS", "cuda" if names == ["gpu"] else "cpu")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several share the GPU
        if "disk" in names:
            disk.preload(folder)
        trials = Trials(
            folder, arguments.jobs, arguments.share, arguments.first, arguments.gpu_model
        )
        for name in names:
            begin = time.monotonic()
            found[name] = {**(ALL | {"gpu": Trials.gpu})[name](trials)}
            found[name]["minutes"] = round((time.monotonic() - begin) / 60, 1)
            print(name, found[name], file=sys.stderr, flush=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "jobs": arguments.jobs}
    print(json.dumps({"machine": machine, "trials": found}))
    sys.exit(any(row["failures"] for row in found.values()))


if __name__ == "__main__":
    main()
