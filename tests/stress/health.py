"""NaN, Inf and spikes in loss and gradient: the step is skipped or the run stops, and nothing bad
is ever saved.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

from .outcome import Outcome, differences, outcome
from .process import call, train
from .signals import latest_checkpoint

KINDS = ("nan loss", "inf loss", "nan gradient", "spike")
SPIKES = "--config.spike_factor=10.0"
STOPPING = ("--config.on_bad_step=stop", SPIKES)
"""The overrides of the undisturbed run: with others the step is another program."""


def poison(kind: str, bad_step: int, rundir: Path) -> None:
    """A fault: the loss of one step is not finite, or its gradient, or it is a thousand times too
    large.
    """
    import pytest

    from gistjax.data.batching import TrainPlan
    from tests.helpers import tiny

    batch = TrainPlan.batch

    def marked_batch(self: Any, step: int) -> Any:
        made = batch(self, step)
        return tiny.make_bad(made, kind) if step + 1 == bad_step else made

    tiny.poison(pytest.MonkeyPatch())  # for good: the process is the fault's own
    TrainPlan.batch = marked_batch  # type: ignore[method-assign]


def trial(seed: int, folder: Path, undisturbed: Outcome) -> dict[str, Any]:
    """One run with one bad step."""
    kind, policy = KINDS[seed % 4], ("stop", "skip")[seed // 4 % 2]
    bad_step = 3 + seed % 9
    rundir = folder / f"health{seed}"
    overrides = [f"--config.on_bad_step={policy}", SPIKES]
    ended = train(rundir, overrides, functools.partial(poison, kind, bad_step))
    finite = call(all_finite, rundir / "checkpoint")
    failure = "" if finite else "a state that is not finite was saved"
    if policy == "stop":
        if ended.code != 2 or f"bad step {bad_step}" not in ended.output:
            failure = failure or f"exit code {ended.code}"
        elif latest_checkpoint(rundir) >= bad_step:
            failure = failure or "saved behind the bad step"
        else:  # and on, without the fault
            again = train(rundir, overrides)
            found = differences(outcome(rundir), undisturbed) if again.code == 0 else [again.end]
            if found:
                failure = failure or f"afterwards differs: {found}"
    elif ended.code or '"skipped_steps": 1' not in (rundir / "metrics.jsonl").read_text():
        failure = failure or f"exit code {ended.code}"
    shutil.rmtree(rundir)
    came = f"{kind}: {'stopped' if policy == 'stop' else 'skipped'}"
    return {
        "came": came,
        "failure": failure and f"{kind} at {bad_step}, {policy}: {failure}: {ended.end}",
    }


def all_finite(checkpoint: Path) -> bool:
    """Whether every number of every saved step is finite."""
    import numpy as np
    import orbax.checkpoint as ocp

    folders = [path for path in checkpoint.glob("*") if path.name.isdecimal()]
    return all(
        np.all(np.isfinite(np.asarray(leaf)))
        for folder in folders
        for leaf in ocp.StandardCheckpointer().restore(folder).values()
    )
