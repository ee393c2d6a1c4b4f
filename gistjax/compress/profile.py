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


def read_profile(path: str, base: LlamaConfig) -> np.ndarray:
    """Return the parts of a file, fp32 `[L, K, R]`.

    Raises:
        CheckpointError: if the file is missing or damaged.
        ConfigError: if none is named, it is no profile, or of a base of other sizes.
    """
    if not path:
        raise ConfigError(
            "select.spread='profile' needs the parts of each KV head: name their file with "
            "--config.select.profile=FILE (`python -m gistjax.calibrate` writes it)."
        )
    arrays, metadata = load_tensors(user_path(path))
    parts, wanted = arrays.get("parts"), (base.n_layers, base.n_kv_heads, len(PROFILE_RATIOS))
    if metadata.get("format") != FORMAT or parts is None:
        raise ConfigError(f"{path} holds no profile: `python -m gistjax.calibrate` writes one.")
    if parts.shape != wanted:
        raise ConfigError(
            f"{path} is a profile of {parts.shape[0]} layers with {parts.shape[1]} KV heads, and "
            f"this base has {base.n_layers} with {base.n_kv_heads}: make one of this base."
        )
    return parts
