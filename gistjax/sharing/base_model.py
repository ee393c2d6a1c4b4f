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

    name: str  # on the hub, or as gistjax knows it, or that of its file
    repo: str  # on the hub; empty where the run cannot tell that its weights are from there
    weights: str  # for people, without a full stop
    caveat: str  # what to know before using others; may be empty
    is_local: bool = False  # whoever uses it has to say where it is


def base_model(config: CompressionConfig, stored: Mapping[str, Any]) -> BaseModel:
    """Return the base that a run was trained on.

    Args:
        stored: the run's `config.json`; its `base_weights` has the form `kind: file`.
    """
    known = KNOWN.get(config.model.known_as)
    name = known.repo if known and known.repo else config.model.known_as
    kind, _, file = str(stored.get("base_weights", "")).partition(": ")
    if kind == "hub":
        return BaseModel(name, name, f"{name} on the hub, revision {file}", "")
    if kind == "random":
        caveat = f"it was trained on random weights of the sizes of {name}, which no one else has"
        return BaseModel(name, "", "random numbers, made by gistjax", caveat)
    if kind == "gguf":
        caveat = (
            f"it was trained on weights of a GGUF file ({file}), which is often quantised; with "
            "weights in full precision answers may differ"
        )
        if known and known.install and not config.model.path:
            weights = f"a GGUF file, {file}, such as that of `{known.install}`"
            return BaseModel(name, name, weights, caveat)
        return BaseModel(name, "", f"a GGUF file, {file}", caveat, is_local=True)
    if known and known.folder and not config.model.path:
        return BaseModel(name, "", f"{name}, which comes with gistjax", "")
    caveat = f"it was trained on weights of a folder ({file})"
    if name != file:
        caveat += f"; that they are those of {name} is what the configuration says"
    return BaseModel(name, "", f"a folder, {file}", caveat, is_local=True)
