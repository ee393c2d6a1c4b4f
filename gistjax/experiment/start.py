"""The earlier stage that a training starts from, checked before weights are loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

from gistjax.compress.exported import load_exported
from gistjax.compress.parameters import find_exported
from gistjax.config import CompressionConfig, LoraConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.tensors import hash_tensors
from gistjax.runtime.texts import user_path

log = logging.getLogger(__name__)


ENCODER = ("kind", "layers", "bidirectional", "pool")
"""Keys of an encoder without which its states are others."""


def check_start(config: CompressionConfig) -> str:
    """Check that the weights at `init_from` mean here what they meant where they were trained.

    Returns:
        Hash of the weights.

    Raises:
        CheckpointError: if there is no compressor, or it is damaged.
        ConfigError: naming the keys that have another value here.
    """
    file = find_exported(user_path(config.init_from))
    arrays, metadata = load_exported(file)
    if "config" not in metadata:
        log.warning("%s does not say how it was trained: its weights are taken as they are", file)
        return hash_tensors(arrays)
    try:
        theirs = CompressionConfig.from_dict(json.loads(metadata["config"]))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its configuration cannot be read ({error}).") from error
    if changed := list(_changed(config, theirs)):
        raise ConfigError(
            f"init_from: {file} was trained with {', '.join(changed)}, so here its weights would "
            "mean something else, or be left behind: set these keys to the same values, or start "
            "from another compressor."
        )
    return hash_tensors(arrays)


def note_base(config: CompressionConfig, base_sha256: str) -> None:
    """Say so where the earlier stage's run names another base, or this one in another dtype."""
    if not config.init_from:
        return
    about = find_exported(user_path(config.init_from)).with_name("config.json")
    theirs = RunDir(about.parent).about().get("base_sha256") if about.is_file() else None
    if theirs not in (None, "", base_sha256):
        log.warning(
            "init_from: %s was trained on another base, or on this one in another dtype (SHA-256 "
            "%s…, here %s…)",
            about.parent,
            theirs[:12],
            base_sha256[:12],
        )


def _changed(ours: CompressionConfig, theirs: CompressionConfig) -> Iterator[str]:
    """Yield the keys, with their old values, that give weights which are taken another meaning.

    Architecture, sizes and ratios may change: an architecture of another name starts anew, and one
    of the same name resizes its own parameters.
    """
    yield from _adapter("lora", ours.lora, theirs.lora)
    if not (ours.compresses and theirs.compresses):
        return  # of a control nothing else is there, and nothing else goes to one
    keys = ["slot_form", "slot_place", "slot_positions"]
    if ours.architecture == theirs.architecture:
        keys += ["slot_start", "connector"]
    for key in keys:
        if getattr(ours, key) != getattr(theirs, key):
            yield f"{key}={getattr(theirs, key)!r}"
    adapts = theirs.encoder.kind == "hidden" and ours.encoder.kind == "lora"  # its adapter is new
    for key in ("layers", "bidirectional", "pool") if adapts else ENCODER:
        if getattr(ours.encoder, key) != getattr(theirs.encoder, key):
            yield f"encoder.{key}={getattr(theirs.encoder, key)!r}"
    if theirs.learns_scores and ours.select.scorer != theirs.select.scorer:
        yield f"select.scorer={theirs.select.scorer!r}"
    if ours.encoder.kind == theirs.encoder.kind == "lora":
        yield from _adapter("encoder.lora", ours.encoder.lora, theirs.encoder.lora)


def _adapter(name: str, ours: LoraConfig, theirs: LoraConfig) -> Iterator[str]:
    """Yield what changes the sum that an adapter adds; more projections begin at zero."""
    if not theirs.rank:
        return
    if ours.rank != theirs.rank:
        yield f"{name}.rank={theirs.rank}"
    if ours.alpha != theirs.alpha:
        yield f"{name}.alpha={theirs.alpha:g}"
    if left := [target for target in theirs.targets if target not in ours.targets]:
        yield f"{name}.targets with {', '.join(left)}"
