"""What a run leaves: everything that must not depend on how often it was interrupted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .process import call

Outcome = dict[str, Any]


def outcome(rundir: Path) -> Outcome:
    """Hashes of the final state, leaf by leaf, and of the exported file; the log without its rates;
    the predictions.
    """
    return {
        "state": call(state_hashes, rundir / "checkpoint"),
        "exported": _sha256((rundir / "compressor.safetensors").read_bytes()),
        "log": logged(rundir),
        "predictions": _sha256((rundir / "predictions.json").read_bytes()),
    }


def logged(rundir: Path) -> list[str]:
    """The lines of `metrics.jsonl` without the fields that hang on the clock."""
    from gistjax.training.metrics_log import RATES

    rows = [json.loads(line) for line in (rundir / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in row.items() if k not in RATES}) for row in rows]


def state_hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of the bytes of every leaf of the newest state, read without gistjax."""
    import numpy as np
    import orbax.checkpoint as ocp

    newest = max((path for path in checkpoint.iterdir() if path.name.isdecimal()), key=_number)
    state = ocp.StandardCheckpointer().restore(newest)
    return {
        "folder": newest.name,
        **{name: _sha256(np.asarray(leaf).tobytes()) for name, leaf in sorted(state.items())},
    }


def differences(ours: Outcome, theirs: Outcome) -> list[str]:
    """Where two outcomes differ."""
    return [name for name in theirs if ours[name] != theirs[name]]


def _number(path: Path) -> int:
    return int(path.name)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
