"""The base of an exported compressor or adapter, as far as others can get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gistjax.config import CompressionConfig
from gistjax.weights.registry import KNOWN


@dataclass(frozen=True)
class BaseModel:
    """A base by its name, and where its weights were from."""

    name: str  # on the hub, or as gistjax knows it
    repo: str  # on the hub; empty where the run cannot tell that its weights are from there
    weights: str  # for people, without a full stop
    caveat: str  # what to know before using others; may be empty


def base_model(config: CompressionConfig, stored: Mapping[str, Any]) -> BaseModel:
    """Return the base that a run was trained on.

    Args:
        stored: the run's `config.json`; its `base_weights` has the form `kind: file`.
    """
    known = KNOWN.get(config.model.name)
    name = known.repo if known and known.repo else config.model.name
    kind, _, file = str(stored.get("base_weights", "")).partition(": ")
    if kind == "hub":
        return BaseModel(name, name, f"{name} on the hub, revision {file}", "")
    if kind == "gguf":
        package = f", such as that of `{known.install}`" if known and known.install else ""
        caveat = (
            f"it was trained on weights of a GGUF file ({file}), which is often quantised; with "
            "weights in full precision answers may differ"
        )
        repo = name if "/" in name else ""
        return BaseModel(name, repo, f"a GGUF file, {file}{package}", caveat)
    if kind == "random":
        caveat = f"it was trained on random weights of the sizes of {name}, which no one else has"
        return BaseModel(name, "", "random numbers, made by gistjax", caveat)
    if known and known.folder:
        return BaseModel(name, "", f"{name}, which comes with gistjax", "")
    caveat = (
        f"it was trained on weights of a folder ({file}); that they are those of {name} is what "
        "the configuration says"
    )
    return BaseModel(name, "", f"a folder, {file}", caveat)
