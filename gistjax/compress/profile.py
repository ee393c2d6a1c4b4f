"""The file of a profile: the part of its entries that each KV head keeps, at several ratios."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gistjax.compress.spread import PROFILE_RATIOS
from gistjax.errors import ConfigError
from gistjax.model.config import LlamaConfig
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.runtime.texts import user_path

FORMAT = "gistjax-profile"


def write_profile(path: Path, parts_LxKxR: np.ndarray, about: dict[str, str]) -> None:
    """Write parts, made monotone: no KV head keeps more at a higher ratio.

    Args:
        parts_LxKxR: at `PROFILE_RATIOS`, each at most 1.
        about: what they are of.

    Raises:
        StorageError: if the disk is full or fails.
    """
    monotone = np.minimum.accumulate(np.clip(parts_LxKxR, 0, 1), axis=-1).astype(np.float32)
    save_tensors(path, {"parts": monotone}, {"format": FORMAT, **about})


def read_profile(path: str, base: LlamaConfig | None = None, base_sha256: str = "") -> np.ndarray:
    """Return the parts of a file, fp32 `[L, K, R]`.

    Args:
        base: sizes of the base that they are for, where they are known.
        base_sha256: hash of its weights, where it is known.

    Raises:
        CheckpointError: if the file is missing or damaged.
        ConfigError: if none is named, it is no profile, or one of another base.
    """
    if not path:
        raise ConfigError(
            "select.spread='profile' needs the parts of each KV head: name their file with "
            "--config.select.profile=FILE (`python -m gistjax.profile` writes it)."
        )
    arrays, metadata = load_tensors(user_path(path))
    parts = arrays.get("parts")
    if metadata.get("format") != FORMAT or parts is None or not _are_parts(parts):
        raise ConfigError(f"{path} holds no profile: `python -m gistjax.profile` writes one.")
    if base is not None and parts.shape[:2] != (base.n_layers, base.n_kv_heads):
        raise ConfigError(
            f"{path} is a profile of {parts.shape[0]} layers with {parts.shape[1]} KV heads, and "
            f"this base has {base.n_layers} with {base.n_kv_heads}: make one of this base."
        )
    theirs = metadata.get("base_sha256", "")
    if base_sha256 and theirs and theirs != base_sha256:
        raise ConfigError(
            f"{path} is a profile of another base, or of this one in another dtype (SHA-256 "
            f"{theirs[:12]}…, this is {base_sha256[:12]}…): make one of this base."
        )
    return parts


def _are_parts(parts: np.ndarray) -> bool:
    """Whether an array has a part between 0 and 1 for each KV head and ratio."""
    shaped = parts.ndim == 3 and parts.shape[2] == len(PROFILE_RATIOS)
    return shaped and parts.dtype == np.float32 and bool(((parts >= 0) & (parts <= 1)).all())
