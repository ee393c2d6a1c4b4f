"""gistjax: compress long contexts into a few vectors that a frozen language model reads in their place."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gistjax.config import CompressionConfig

if TYPE_CHECKING:
    from gistjax.inference.engine import Answer, Document, Engine, load
    from gistjax.train import run_single_ablation

__all__ = [
    "Answer",
    "CompressionConfig",
    "Document",
    "Engine",
    "load",
    "run_single_ablation",
]

_HOMES = {name: "gistjax.inference.engine" for name in ("Answer", "Document", "Engine", "load")}
_HOMES["run_single_ablation"] = "gistjax.train"


def __getattr__(name: str) -> Any:
    """What needs JAX and transformers is imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gistjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
