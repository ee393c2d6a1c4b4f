"""Checkpoints of a run: the train state through Orbax, in `checkpoint/` of the run directory.

Only what training changes is saved: trainable parameters, optimizer state and step. The base is named, not copied: its
hash stands in `config.json`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gistjax.compress.architectures import stretched
from gistjax.errors import CheckpointError, StorageError, first_line
from gistjax.experiment.run_dir import EXPORTED
from gistjax.runtime.files import sync_folder
from gistjax.runtime.sharding import barrier, is_primary, path_name, put, to_host
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.training.manifest import check_manifest, write_manifest
from gistjax.training.step import TrainState

log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores a run's train state; the newest two steps are kept.

    Saving goes on in the background. A step's folder, named by its number, gets that name only once it is complete and its
    manifest written: what a kill or a full disk leaves of a save lies in `unfinished/`.

    Use it in a `with` block: leaving waits for the last save.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory.absolute()
        self._unfinished = self.directory / "unfinished"
        self._keep = keep
        self._orbax = ocp.StandardCheckpointer()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        if self._unfinished.exists():
            log.warning("removing what an interrupted save left in %s", self._unfinished)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except StorageError as failure:
            if error is None:
                raise
            log.error("%s", failure)
        finally:
            self._thread.shutdown()
            with contextlib.suppress(Exception):  # it repeats what went wrong in a save
                self._orbax.close()
            if is_primary():
                shutil.rmtree(self._unfinished, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """The complete steps, ascending."""
        if not self.directory.exists():
            return []
        folders = [path for path in self.directory.iterdir() if path.is_dir()]
        return sorted(int(path.name) for path in folders if path.name.isdecimal())

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self.steps[-1] if self.steps else None

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving, once the last save is done; a step that is already there is left as it is.

        Raises:
            StorageError: if this save, or the last one, failed; complete steps stay.
        """
        self.wait()
        barrier("the last save is done")
        if step in self.steps:
            return
        try:
            if is_primary():
                shutil.rmtree(self._unfinished, ignore_errors=True)
                self._unfinished.mkdir(parents=True)
            barrier("there is a folder to save to")
            self._orbax.save(self._unfinished / str(step), _plain(state))
        except Exception as error:
            raise self._failed(step, error) from error
        self._saving = step, self._thread.submit(self._finish, step)

    def check(self) -> None:
        """Looks whether a save failed, without waiting for it.

        Raises:
            StorageError: if it did.
        """
        if self._saving and self._saving[1].done() and jax.process_count() == 1:
            self.wait()  # of several processes each would look at another time

    def wait(self) -> None:
        """Waits for the last save.

        Raises:
            StorageError: if it failed; complete steps stay.
        """
        if self._saving:
            (step, future), self._saving = self._saving, None
            try:
                future.result()
            except Exception as error:
                raise self._failed(step, error) from error

    def _finish(self, step: int) -> None:
        folder = self._unfinished / str(step)
        self._orbax.wait_until_finished()
        if not is_primary():
            return
        write_manifest(folder)
        folder.rename(self.directory / str(step))
        sync_folder(self.directory)
        for old in self.steps[: -self._keep]:
            (self.directory / str(old)).rename(self._unfinished / f"{old}.old")
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def _failed(self, step: int, error: Exception) -> StorageError:
        intact = f"step {self.latest_step} is intact" if self.steps else "no step was saved yet"
        return StorageError(
            f"cannot save step {step} to {self.directory}: {_cause(error)}. There, {intact}: make room "
            "and run the same command again."
        )

    def restore(self, state: TrainState) -> TrainState:
        """The newest undamaged state, in the shapes, dtypes and shardings of `state`.

        Damaged steps are set aside as `STEP.damaged`.

        Raises:
            CheckpointError: if every step is damaged, or the state does not fit.
        """
        step = self._newest_undamaged()
        try:
            plain = self._orbax.restore(
                self.directory / str(step), jax.tree.map(_abstract, _plain(state))
            )
        except Exception as error:
            raise CheckpointError(
                f"cannot restore step {step} from {self.directory}: {first_line(error, 300)}. "
                "Move that folder away to train anew, or use another --workdir."
            ) from error
        log.info("resumed from step %d of %s", step, self.directory)
        return jax.tree_util.tree_map_with_path(lambda path, _: plain[_name(path)], state)

    def _newest_undamaged(self) -> int:
        damaged: list[tuple[int, CheckpointError]] = []
        for step in reversed(self.steps):
            try:
                strays = check_manifest(self.directory / str(step))
            except CheckpointError as error:
                damaged.append((step, error))
                continue
            barrier("every process has looked at the checkpoints")
            for other, cause in damaged:
                aside = self.directory / f"{other}.damaged"
                log.warning("%s: going back to step %d; %s is set aside", cause, step, aside)
                if is_primary():
                    shutil.rmtree(aside, ignore_errors=True)
                    try:
                        (self.directory / str(other)).rename(aside)
                    except OSError as error:
                        raise StorageError(
                            f"{aside.stem} of {self.directory} is damaged and cannot be set aside ({error.strerror}): "
                            "take it away."
                        ) from error
            self._move_out(strays)
            return step
        raise CheckpointError(
            f"{damaged[0][1] if damaged else 'nothing was saved'}, and {self.directory} holds no other step. "
            "Restore it from a copy; to train anew, move that folder away or use another --workdir."
        )

    def _move_out(self, strays: list[Path]) -> None:
        """Files that are not of a checkpoint: Orbax would read some by their names."""
        for stray in strays if is_primary() else []:
            target = self.directory / "strays" / stray.relative_to(self.directory)
            while os.path.lexists(target):  # a link that leads nowhere too
                target = target.with_name(target.name + "_")
            log.warning("%s is not of this checkpoint: moved to %s", stray, target)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                stray.rename(target)
            except OSError as error:
                raise StorageError(
                    f"{stray} is not of this checkpoint and cannot be moved ({error.strerror}): take it away."
                ) from error
        barrier("only what was saved is left")


def _plain(state: TrainState) -> dict[str, Any]:
    """The state by parameter names: a checkpoint then knows nothing of Flax's or optax's containers."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _name(path: tuple[Any, ...]) -> str:
    return path_name(path).replace("/", ".")


def export_trainable(trainable: Any, path: Path, metadata: dict[str, str]) -> None:
    """Writes the trainable leaves as one safetensors file with a checksum, for sharing.

    Raises:
        StorageError: if the disk is full or fails; a file that was there stays.
    """
    arrays = {
        path_name(key): np.asarray(to_host(leaf))
        for key, leaf in jax.tree_util.tree_leaves_with_path(trainable)
    }
    if is_primary():
        save_tensors(path, arrays, metadata)


def import_trainable(path: Path, trainable: Any) -> Any:
    """Reads what `export_trainable` wrote, in the shapes and shardings of `trainable`.

    Raises:
        CheckpointError: if the file is missing or damaged, or its parameters are not those of `trainable`.
    """
    arrays, _ = load_tensors(path)

    def find(key: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = path_name(key)
        found = arrays.get(name)
        if found is None or found.shape != leaf.shape:
            state = "is missing" if found is None else f"has shape {found.shape}"
            raise CheckpointError(
                f"{path} does not fit this configuration: {name} {state}, expected {leaf.shape}. "
                "Use the config.json that lies beside it."
            )
        return put(found.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(find, trainable)


def start_from(
    path: Path, trainable: Any, architecture: str, make: Callable[[], Any] | None = None
) -> Any:
    """The leaves of an earlier stage: of `compressor.safetensors`, or of the run directory that holds it.

    What the earlier stage did not have stays as it is in `trainable`, and so do head, gate and connector if it was of
    another architecture; what is taken must fit. A convolution's kernel is stretched to its new width. Of other parameters
    that have more rows there, such as the queries of more slots, the first are taken over.

    Args:
        trainable: arrays or, where there is `make`, shapes with shardings.
        make: gives `trainable` as arrays; called if the file does not have all of it.

    Raises:
        CheckpointError: if the file is missing, damaged or of other shapes, or has nothing in common with `trainable`.
    """
    file = find_exported(path)
    arrays, metadata = load_tensors(file)
    same_head, taken = _architecture(metadata) in (architecture, None), []

    def find(key: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = path_name(key)
        of_head = re.match(r"compressor/(head/|gate|connector/)", name)
        found = arrays.get(name)
        if found is None or (of_head and not same_head):
            return leaf
        if found.ndim and found.shape[1:] == leaf.shape[1:]:
            if name == "compressor/head/kernel" and len(found):
                found = stretched(found, len(leaf))
            found = found[: len(leaf)]
        if found.shape != leaf.shape:
            raise CheckpointError(
                f"{file} does not fit this configuration: {name} has shape {found.shape}, expected {leaf.shape}."
            )
        taken.append(name)
        return put(found.astype(leaf.dtype), leaf.sharding)

    result = jax.tree_util.tree_map_with_path(find, trainable)
    if not taken:
        raise CheckpointError(f"{file} holds no parameter of this configuration.")
    wanted = len(jax.tree.leaves(trainable))
    log.info("%d of %d parameter arrays from %s", len(taken), wanted, file)
    if make and len(taken) < wanted:
        result = jax.tree.map(
            lambda leaf, made: made if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
            result,
            make(),
        )
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


def _architecture(metadata: dict[str, str]) -> str | None:
    """That an exported compressor was trained with; None where the file does not say."""
    try:
        return json.loads(metadata["config"])["architecture"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _cause(error: BaseException | None) -> str:
    """What the operating system said, out of the many words of those who passed it on."""
    first = first_line(error, 300) if error else ""
    while error:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if found := re.search(r"\[os_error_code='?(\d+)", str(error)):  # tensorstore's
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return first
