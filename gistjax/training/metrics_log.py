"""The log of a run: `metrics.jsonl` and, if asked for, TensorBoard's events beside it."""

from __future__ import annotations

import json
import logging
import operator
import os
from pathlib import Path
from typing import Any

from gistjax.errors import StorageError
from gistjax.runtime.files import to_json, write_atomically
from gistjax.runtime.sharding import is_primary

log = logging.getLogger(__name__)

RATES = ("step_s", "examples_per_s", "tokens_per_s", "mfu")
"""Fields that depend on the clock. All others are the same in every run of a configuration."""


class MetricsLog:
    """One line a logged step, each step once, also after a resume.

    But for the rates (`RATES`), a run that was interrupted leaves the same bytes as one that was
    not.

    Args:
        path: the file.
        first_step: the step that the run goes on from; later lines are cut off, since their steps
            are run again.
        every: steps between two lines.
        tensorboard: also write events.
    """

    def __init__(self, path: Path, first_step: int, every: int = 1, tensorboard: bool = False):
        self._path = path
        self._events = Events(path.parent, first_step) if tensorboard and is_primary() else None
        if not is_primary():
            return
        steps = self._cut(first_step) if path.exists() else []
        if first_step and (1 not in steps or steps[-1] <= first_step - every):
            log.warning("%s lacks lines of steps that were trained", path)

    def _cut(self, first_step: int) -> list[int]:
        """Cut off the lines of steps after the last checkpoint; return the steps that stay."""
        content = self._path.read_bytes()
        kept, steps, again = [], [], []
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            try:
                step = operator.index(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):  # or else cut short by a kill: its step is run again
                    log.warning("line %d of %s is damaged and left out", number, self._path)
                continue
            if step <= first_step:
                kept.append(line)
                steps.append(step)
            else:
                again.append(step)
        if again:
            log.warning(
                "steps %d to %d were not saved: they are run again", first_step + 1, max(again)
            )
        if b"".join(kept) != content:
            write_atomically(self._path, b"".join(kept))
        return steps

    def write(self, row: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            StorageError: if the disk is full or fails.
        """
        if is_primary():
            self._append(to_json(row) + "\n")
        if self._events:
            self._events.write(row)

    def sync(self) -> None:
        """Make the lines so far survive a power failure."""
        if is_primary():
            self._append("", sync=True)

    def close(self) -> None:
        """Close the log: no line will follow."""
        if self._events:
            self._events.close()

    def _append(self, text: str, sync: bool = False) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}. Make room and run the same command "
                "again; it goes on from the last checkpoint."
            ) from error


class Events:
    """TensorBoard's events in `tensorboard/` of a run directory (the extra `tensorboard`).

    After a resume TensorBoard forgets the events past the step that training goes on from.
    """

    def __init__(self, rundir: Path, first_step: int):
        from tensorboardX import SummaryWriter  # an extra, imported only if asked for

        self._writer = SummaryWriter(
            str(rundir / "tensorboard"), purge_step=first_step + 1, flush_secs=10
        )

    def write(self, row: dict[str, Any]) -> None:
        """Write the numbers of a line of `metrics.jsonl`."""
        for name, value in row.items():
            # None is a number that is not finite
            if name not in ("step", "total_steps", "task") and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Wait until all is written; without it, that is when the process ends."""
        self._writer.close()
