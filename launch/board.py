"""Table of a running sweep: redrawn in place on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.schedule import SUBMITTED, Job

log = logging.getLogger(__name__)

COLUMNS = ("run", "state", "step", "ETA", "loss", "F1", "device")


def progress(workdir: Path) -> dict[str, Any]:
    """Return what is known of `step`, `total_steps`, `loss`, `step_s`, `f1` and `devices`."""
    found: dict[str, Any] = {}
    for row in _json_lines(workdir / "metrics.jsonl"):
        found |= row
    if results := _json(workdir / "metrics.json"):
        found["f1"] = results.get("final_f1")
    if started := _json(workdir / "started.json"):
        found["devices"] = f"{started['host']} {started['devices']}"
    return found


def _json(path: Path) -> dict[str, Any]:
    rows = _json_lines(path, whole=True)
    return rows[-1] if rows else {}


def _json_lines(path: Path, whole: bool = False) -> list[dict[str, Any]]:
    """Return the objects of a file that another process may be writing."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    rows = []
    for piece in [text] if whole else text.splitlines():
        try:
            rows.append(json.loads(piece))
        except ValueError:
            continue
    return rows


def cells(job: Job) -> tuple[str, ...]:
    """Return a job's line of the table."""
    found = progress(job.run.workdir)
    at_work = job.state == SUBMITTED and job.started.exists()
    state = "running" if at_work else job.state
    step, total = found.get("step"), found.get("total_steps")
    eta = ""
    if at_work and step is not None and total:
        eta = clock((total - step) * found.get("step_s", 0.0))
    loss, f1 = found.get("loss"), found.get("f1")
    return (
        job.run.name,
        state + (f" ({job.attempts})" if job.attempts > 1 else ""),
        "" if step is None else f"{step}/{total or '?'}",
        eta,
        "" if loss is None else f"{loss:.3f}",
        "" if f1 is None else f"{f1:.3f}",
        found.get("devices", "") if at_work else "",
    )


def clock(seconds: float) -> str:
    """Return seconds as in `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Board:
    """Display of jobs, to be used in a `with` block."""

    def __init__(self, jobs: Mapping[str, Job]):
        self._jobs, console = jobs, Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._states: dict[str, str] = {}

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Show the present state."""
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
        for name, job in self._jobs.items():
            line = cells(job)
            if self._states.get(name) != line[1]:
                self._states[name] = line[1]
                log.info("%s", "  ".join(filter(None, line)))

    def _table(self) -> Table:
        table = Table(*COLUMNS)
        for job in self._jobs.values():
            table.add_row(*cells(job))
        return table
