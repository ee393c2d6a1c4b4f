"""Upload of an exported folder to the hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import huggingface_hub

from gistjax.errors import ExportError, first_line
from gistjax.experiment.hub import check_repo

log = logging.getLogger(__name__)


def push(folder: Path, names: list[str], repo: str, dry_run: bool) -> dict[str, Any]:
    """Upload files of a folder to a model repository; a new one is made, private at first.

    Args:
        names: the files; others in the folder are not uploaded.
        dry_run: check the name, list the files and stop, without a word to the hub.

    Raises:
        ConfigError: if the name is not that of a repository.
        ExportError: if nobody is logged in, or the hub refuses or cannot be reached.
    """
    check_repo(repo, "--push")
    files = {name: (folder / name).stat().st_size for name in sorted(names)}
    plan = {"repository": repo, "files": files, "pushed": False}
    if dry_run:
        return plan
    if not huggingface_hub.get_token():
        raise ExportError(
            "not logged in at the hub: run `hf auth login` with a token that may write."
        )
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=names,
            commit_message="Compressor and model card",
        )
    except Exception as error:  # refused, offline, proxies, timeouts: many kinds
        raise ExportError(
            f"the hub did not take {repo} ({first_line(error)}): check the name, the token's "
            f"right to write and the connection; the files are in {folder}."
        ) from error
    return {**plan, "pushed": True, "url": str(commit.commit_url)}
