"""Compressors on the hub: what `export --push` uploads is fetched, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gistjax.compress import EXPORTED
from gistjax.errors import CheckpointError, ConfigError, first_line
from gistjax.experiment.run_dir import CALIBRATION, SHIPPED, RunDir
from gistjax.names import own_parts
from gistjax.runtime.logs import quiet_hub

FILES = (EXPORTED, "config.json", CALIBRATION)
"""What `gistjax.load` reads of an exported folder; only some have the last."""


def check_repo(repo: object, given: str) -> None:
    """Refuse what cannot be the name of a repository.

    Args:
        given: how it was given, for the message.

    Raises:
        ConfigError: if it is no `organisation/model`.
    """
    form = f"{given}={repo}: a repository is named organisation/model"
    if not isinstance(repo, str) or "/" not in repo:
        raise ConfigError(f"{form}.")
    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        raise ConfigError(f"{form} ({error}).") from error


def locate(run: str | Path, repo: str | None, revision: str) -> str | Path:
    """Return the folder of a run, or of a repository on the hub where one is given.

    Raises:
        CheckpointError: as `fetch` does.
        ConfigError: if another run than the one that comes with gistjax is given too, a revision
            of no repository, or a name that is none.
    """
    if repo is not None and run != SHIPPED:
        raise ConfigError(f"run={str(run)!r} and repo={repo!r}: give one of them.")
    if not isinstance(revision, str):
        raise ConfigError(f"revision={revision!r} must be a text: a branch, tag or commit.")
    if revision and repo is None:
        raise ConfigError(f"revision={revision!r} is of a repo on the hub: give that too.")
    return run if repo is None else fetch(repo, revision)


def fetch(repo: str, revision: str = "") -> Path:
    """Return the folder of a compressor in the hub's local cache, fetched first if it is not there.

    Args:
        revision: branch, tag or commit; by default the newest of the main branch.

    Raises:
        CheckpointError: if there is no such repository or revision, the hub cannot be reached, or
            the repository holds no compressor, or one that is code.
        ConfigError: if the repository's name is none.
    """
    check_repo(repo, "repo")
    folder = _download(repo, revision)
    try:
        run = RunDir(folder)
        config = run.config()
        run.finished(run.exported)
    except CheckpointError as error:
        raise CheckpointError(
            f"{repo} on the hub holds no compressor ({error}) Give a repository that "
            "`gistjax.export --push` uploaded to."
        ) from error
    modules = [part.rpartition(".")[0] for part in own_parts(config.architecture)]
    if module := next((name for name in modules if name not in sys.modules), None):
        raise CheckpointError(
            f"{repo} on the hub names an architecture of its own, {config.architecture!r}, whose "
            f"code gistjax does not have: if you trust it, `import {module}` first."
        )
    return folder


def _download(repo: str, revision: str) -> Path:
    try:
        with quiet_hub():
            found = huggingface_hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=[*FILES]
            )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: ask for access on its hub page, and log in (`hf auth login`)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no model {repo}, or it is private: check the name, or log in "
            "(`hf auth login`)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo} on the hub has no revision {revision!r}: give a branch, tag or commit of it."
        ) from error
    except Exception as error:  # offline, proxies, timeouts: many kinds, one cure
        raise CheckpointError(
            f"the hub cannot be reached for {repo} ({first_line(error)}), and its cache here does "
            "not have it: connect, or fetch it elsewhere and give its folder as `run`."
        ) from error
    return Path(found)
