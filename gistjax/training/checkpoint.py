"""Checkpoints of a run: the train state through Orbax, in `checkpoint/` of the run directory.

Only what training changes is saved: trainable parameters, optimizer state and step. The base is named, not copied: its
hash stands in `config.json`.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from gistjax.errors import CheckpointError
from gistjax.sharding import path_name
from gistjax.training.step import TrainState

log = logging.getLogger(__name__)

EXPORTED = "compressor.safetensors"


class Checkpointer:
    """Saves and restores a run's train state; the newest two steps are kept.

    Use it in a `with` block: leaving waits for the last save.
    """

    def __init__(self, directory: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.directory = directory
        try:
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        except Exception as error:  # whatever is in its files
            raise CheckpointError(
                f"cannot open {directory}: {_first_line(error)}. Move that folder away to train anew."
            ) from error

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving; a step that is already there is left as it is."""
        if step != self.latest_step:
            self._manager.save(step, args=ocp.args.StandardSave(_plain(state)))

    def restore(self, state: TrainState) -> TrainState:
        """The newest state, in the shapes, dtypes and shardings of `state`.

        Raises:
            CheckpointError: if it cannot be read, or does not fit.
        """
        step = self.latest_step
        try:
            plain = self._manager.restore(
                step, args=ocp.args.StandardRestore(jax.tree.map(_abstract, _plain(state)))
            )
        except Exception as error:
            raise CheckpointError(
                f"cannot restore step {step} from {self.directory}: {_first_line(error)}. "
                "Move that folder away to train anew, or use another --workdir."
            ) from error
        log.info("resumed from step %d of %s", step, self.directory)
        return jax.tree_util.tree_map_with_path(lambda path, _: plain[_name(path)], state)


def _plain(state: TrainState) -> dict[str, Any]:
    """The state by parameter names: a checkpoint then knows nothing of Flax's or optax's containers."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _name(path: tuple[Any, ...]) -> str:
    return path_name(path).replace("/", ".")


def export_trainable(trainable: Any, path: Path, metadata: dict[str, str]) -> None:
    """Writes the trainable leaves as one safetensors file, for sharing."""
    arrays = {
        path_name(key): np.ascontiguousarray(jax.device_get(leaf))
        for key, leaf in jax.tree_util.tree_leaves_with_path(trainable)
    }
    save_file(arrays, path, metadata=metadata)


def import_trainable(path: Path, trainable: Any) -> Any:
    """Reads what `export_trainable` wrote, in the shapes and shardings of `trainable`.

    Raises:
        CheckpointError: if the file is missing or damaged, or its parameters are not those of `trainable`.
    """
    arrays = _load(path)

    def find(key: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = path_name(key)
        found = arrays.get(name)
        if found is None or found.shape != leaf.shape:
            state = "is missing" if found is None else f"has shape {found.shape}"
            raise CheckpointError(
                f"{path} does not fit this configuration: {name} {state}, expected {leaf.shape}. "
                "Use the config.json that lies beside it."
            )
        return jax.device_put(found.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(find, trainable)


def start_from(path: Path, trainable: Any, architecture: str) -> Any:
    """The leaves of an earlier stage: of `compressor.safetensors`, or of the run directory that holds it.

    What the earlier stage did not have stays as it is in `trainable`, and so do head, gate and connector if it was of
    another architecture; what is taken must fit. Of parameters of which only the first axis differs, such as the queries
    of fewer slots, the first rows are taken over.

    Raises:
        CheckpointError: if the file is missing, damaged or of other shapes, or has nothing in common with `trainable`.
    """
    file = find_exported(path)
    arrays, taken = _load(file), []
    same_head = _architecture(file) in (architecture, None)

    def find(key: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = path_name(key)
        of_head = re.match(r"compressor/(head/|gate|connector/)", name)
        found = arrays.get(name)
        if found is None or (of_head and not same_head):
            return leaf
        if found.ndim and found.shape[1:] == leaf.shape[1:] and len(found) > len(leaf):
            found = found[: len(leaf)]
        if found.shape != leaf.shape:
            raise CheckpointError(
                f"{file} does not fit this configuration: {name} has shape {found.shape}, expected {leaf.shape}."
            )
        taken.append(name)
        return jax.device_put(found.astype(leaf.dtype), leaf.sharding)

    result = jax.tree_util.tree_map_with_path(find, trainable)
    if not taken:
        raise CheckpointError(f"{file} holds no parameter of this configuration.")
    log.info("%d of %d parameter arrays from %s", len(taken), len(jax.tree.leaves(trainable)), file)
    return result


def find_exported(path: Path) -> Path:
    """The file of an exported compressor, given it or the run directory that holds it.

    Raises:
        CheckpointError: if it is not there.
    """
    file = path / EXPORTED if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"there is no {file}: --config.init_from takes the directory of a finished run, or its {EXPORTED}."
        )
    return file


def _architecture(file: Path) -> str | None:
    """That an exported compressor was trained with; None where the file does not say."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return json.loads((opened.metadata() or {})["config"])["architecture"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {_first_line(error)}") from error


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
