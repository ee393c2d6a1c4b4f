"""One flipped bit anywhere in a checkpoint, an exported compressor, or another file of checked
tensors.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

TARGETS = ("checkpoint, one step", "checkpoint, two steps", "exported", "compressed context")


def prepare(rundir: Path, folder: Path) -> None:
    """Copy what will be damaged out of a finished run; save a compressed context beside it."""
    import numpy as np

    from gistjax.runtime.tensors import save_tensors

    shutil.copytree(rundir / "checkpoint", folder / "checkpoint")
    shutil.copy(rundir / "compressor.safetensors", folder / "exported.safetensors")
    slots = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    save_tensors(folder / "context.safetensors", {"slots": slots}, {"format": "gistjax context"})


def trials(seeds: list[int], source: Path, folder: Path) -> dict[str, Any]:
    """Flips a bit for each seed and reads; counts what came of it."""
    seen: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        rng, target = random.Random(seed), TARGETS[seed % len(TARGETS)]
        copy = folder / f"flip{seed}"
        if target.startswith("checkpoint"):
            came = _flip_checkpoint(rng, source / "checkpoint", copy, target.endswith("two steps"))
        else:
            name = "exported.safetensors" if target == "exported" else "context.safetensors"
            came = _flip_tensors(rng, source / name, copy)
        shutil.rmtree(copy)
        seen[f"{target}: {came}"] += 1
        if came not in ("refused", "fell back", "no value changed"):
            failures.append(f"{seed} {target}: {came}")
    return {"seen": seen, "failures": failures}


def _flip_tensors(rng: random.Random, source: Path, copy: Path) -> str:
    from gistjax.errors import CheckpointError
    from gistjax.runtime.tensors import load_tensors

    copy.mkdir()
    file = Path(shutil.copy(source, copy))
    flip(rng, file)
    try:
        load_tensors(file)
    except CheckpointError as error:
        return "refused" if str(file) in str(error) else f"file not named: {error}"
    return "silently read"


def _flip_checkpoint(rng: random.Random, source: Path, copy: Path, two: bool) -> str:
    from gistjax.errors import CheckpointError
    from gistjax.training.checkpoint import Checkpointer

    shutil.copytree(source, copy)
    older, newest = sorted((path for path in copy.iterdir()), key=lambda path: int(path.name))
    if not two:
        shutil.rmtree(older)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    file = rng.choices(files, [path.stat().st_size for path in files])[0]
    flip(rng, file)
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gistjax.training.checkpoint")
    logger.addHandler(handler)
    try:
        with Checkpointer(copy) as checkpointer:
            restored = checkpointer.restore(_state(source / newest.name))
    except CheckpointError as error:
        told.append(str(error))
        restored = None
    finally:
        logger.removeHandler(handler)
    if restored is None or not _same(restored, _state(source / newest.name)):
        # Any flip in the manifest may look like damage of a file that it lists.
        named = str(newest) if file.name == "manifest.json" else str(file)
        if not any(named in line for line in told):
            return f"file not named: {file} in {told}"
        if restored is None:
            return "refused although a good step was there" if two else "refused"
        return "fell back" if _same(restored, _state(source / older.name)) else "silently wrong"
    return "no value changed"


_states: dict[Path, Any] = {}


def _state(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    if folder not in _states:
        _states[folder] = ocp.StandardCheckpointer().restore(folder)
    return _states[folder]


def _same(one: Any, other: Any) -> bool:
    import numpy as np

    return one.keys() == other.keys() and all(
        np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one
    )


def flip(rng: random.Random, file: Path) -> None:
    """One bit, anywhere."""
    content = bytearray(file.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
