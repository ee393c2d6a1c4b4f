"""TensorBoard's events of a run, beside `metrics.jsonl`: switched on by `--config.tensorboard=True`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Events:
    """Writes the numbers of logged steps into `tensorboard/` of a run directory (tensorboardX, the extra `tensorboard`).

    After a resume TensorBoard forgets what was logged past the step that training goes on from.
    """

    def __init__(self, rundir: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(rundir / "tensorboard"), purge_step=first_step + 1, flush_secs=10
        )

    def write(self, row: dict[str, Any]) -> None:
        """A line of `metrics.jsonl`."""
        for name, value in row.items():
            if name not in ("step", "total_steps") and value is not None:  # None is not finite
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Waits until all is written; without it, that is when the process ends."""
        self._writer.close()
