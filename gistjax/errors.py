"""Errors a user can cause: each message names cause and fix; commands print no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GistjaxError(Exception):
    """Base of every error that a user can fix."""


class ConfigError(GistjaxError):
    """A configuration value is unknown, of the wrong type, or contradicts another."""


class DataError(GistjaxError):
    """A data set is missing, malformed, or has no usable rows."""


class WeightsError(GistjaxError):
    """Base weights or a tokenizer are missing, damaged, or do not fit the model."""


class CheckpointError(GistjaxError):
    """A checkpoint is missing, damaged, in use, or belongs to another configuration."""


class InUseError(CheckpointError):
    """Another process holds what is to be written: wait for it or stop it."""


class StorageError(GistjaxError):
    """A file cannot be written: the disk is full, read-only or failing."""


class DeviceMemoryError(GistjaxError):
    """A device's memory does not hold what a run needs."""


class TrainingError(GistjaxError):
    """Training cannot go on: the loss or its gradient is not finite, or the loss jumped."""


class ExportError(GistjaxError):
    """A run cannot be given away in this form, or the hub does not take it."""


class BusyError(GistjaxError):
    """A server has as much to do as it takes, or is stopping: ask again later."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of a library's error, cut to `limit` characters, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message: the nearest known name, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}."
