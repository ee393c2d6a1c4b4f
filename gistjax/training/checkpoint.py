"""Checkpoints of a run: the train state through Orbax, in `checkpoint/` of the run directory.

Only what training changes is saved: trainable parameters, optimizer state and step. The base is
named, not copied: its hash is in `config.json`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gistjax.errors import CheckpointError, StorageError, first_line
from gistjax.runtime.files import sync_folder
from gistjax.runtime.sharding import barrier, is_primary, path_name
from gistjax.settings import PARAMETERS_OF_0_1
from gistjax.training.manifest import check_manifest, write_manifest
from gistjax.training.step import TrainState

log = logging.getLogger(__name__)


class Checkpointer:
    """Save and restore a run's train state; the newest two steps are kept.

    Saving goes on in the background. A step's folder, named by its number, gets that name only once
    it is complete and its manifest written: what a kill or a full disk leaves of a save is in
    `unfinished/`.

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
        """Start saving, once the last save is done; a step that is already there is left as it is.

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
        """Raise the error of a save that failed, without waiting for one.

        Raises:
            StorageError: if it did.
        """
        if self._saving and self._saving[1].done() and jax.process_count() == 1:
            self.wait()  # of several processes each would look at another time

    def wait(self) -> None:
        """Wait for the last save.

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
            f"cannot save step {step} to {self.directory}: {_cause(error)}. There, {intact}: make "
            "room and run the same command again."
        )

    def restore(self, state: TrainState) -> TrainState:
        """The newest undamaged state, in the shapes, dtypes and shardings of `state`.

        Damaged steps are set aside as `STEP.damaged`.

        Raises:
            CheckpointError: if every step is damaged, or the state does not fit.
        """
        step = self._newest_undamaged()
        folder = self.directory / str(step)
        name = _name_in_0_1 if _is_of_0_1(folder) else _name
        leaves = jax.tree_util.tree_leaves_with_path(state)
        try:
            plain = self._orbax.restore(folder, {name(p): _abstract(leaf) for p, leaf in leaves})
        except Exception as error:
            raise CheckpointError(
                f"cannot restore step {step} from {self.directory}: {first_line(error, 300)}. "
                "Move that folder away to train anew, or use another --workdir."
            ) from error
        log.info("resumed from step %d of %s", step, self.directory)
        restored: TrainState = jax.tree_util.tree_map_with_path(
            lambda path, _: plain[name(path)], state
        )
        return restored

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
                            f"{aside.stem} of {self.directory} is damaged and cannot be set aside "
                            f"({error.strerror}): take it away."
                        ) from error
            self._move_out(strays)
            return step
        raise CheckpointError(
            f"{damaged[0][1] if damaged else 'nothing was saved'}, and {self.directory} holds no "
            "other step. Restore it from a copy; to train anew, move that folder away or use "
            "another --workdir."
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
                    f"{stray} is not of this checkpoint and cannot be moved ({error.strerror}): "
                    "take it away."
                ) from error
        barrier("only what was saved is left")


def _plain(state: TrainState) -> dict[str, Any]:
    """The state by parameter names: a checkpoint knows nothing of Flax's or optax's containers."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _name(path: tuple[Any, ...]) -> str:
    return path_name(path).replace("/", ".")


def _is_of_0_1(folder: Path) -> bool:
    """Return True if a step holds parameters under their names of gistjax 0.1."""
    metadata = folder / "_METADATA"
    old = PARAMETERS_OF_0_1[0].replace("/", ".").encode()
    return metadata.exists() and old in metadata.read_bytes()


def _name_in_0_1(path: tuple[Any, ...]) -> str:
    old, new = (name.replace("/", ".") for name in PARAMETERS_OF_0_1)
    return _name(path).replace(new, old)


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _cause(error: BaseException | None) -> str:
    """Return the operating system's own message, out of those that were raised on its way."""
    first = first_line(error, 300) if error else ""
    while error:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if found := re.search(r"\[os_error_code='?(\d+)", str(error)):  # tensorstore's
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return first
