"""Compress long contexts into what a frozen language model needs of them to answer.

import gistjax

engine = gistjax.load()  # comes with gistjax; or load("runs/qa"), load(repo="organisation/model")
document = engine.compress(text)
document.ask("Who built the mill?").text
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gistjax.config import CompressionConfig

if TYPE_CHECKING:
    from gistjax.inference.document import Answer, Document
    from gistjax.inference.engine import Engine, load
    from gistjax.inference.store import Store
    from gistjax.train import run_single_ablation

__version__ = "0.3.0"

__all__ = [
    "Answer",
    "CompressionConfig",
    "Document",
    "Engine",
    "Store",
    "load",
    "run_single_ablation",
]

_HOMES = {
    "Answer": "gistjax.inference.document",
    "Document": "gistjax.inference.document",
    "Engine": "gistjax.inference.engine",
    "Store": "gistjax.inference.store",
    "load": "gistjax.inference.engine",
    "run_single_ablation": "gistjax.train",
}
"""Modules of the names that need JAX: imported on first use, so that `import gistjax` is quick."""


def __getattr__(name: str) -> Any:
    """Import the module of a name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gistjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the names above too, imported or not."""
    return sorted({*globals(), *__all__})
