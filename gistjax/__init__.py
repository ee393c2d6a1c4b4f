"""gistjax: compress long contexts into a few vectors that a frozen language model reads in their place."""

from __future__ import annotations

from typing import Any

from gistjax.config import CompressionConfig

__all__ = ["CompressionConfig", "run_single_ablation"]


def __getattr__(name: str) -> Any:
    """`run_single_ablation` on first use: it brings JAX and transformers with it."""
    if name == "run_single_ablation":
        from gistjax.train import run_single_ablation

        return run_single_ablation
    raise AttributeError(f"module 'gistjax' has no attribute {name!r}")
