"""A model's parameters: which are trained, how many there are, and the file that shares them."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gistjax.compress import EXPORTED
from gistjax.compress.architectures import find_architecture
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.exported import load_exported, save_exported
from gistjax.config import UNCOMPRESSED, CompressionConfig
from gistjax.errors import CheckpointError
from gistjax.model.config import LlamaConfig
from gistjax.model.layer import random_initializer
from gistjax.model.llama import Execution, Llama
from gistjax.model.lora import Trainable
from gistjax.runtime.sharding import is_primary, path_name, put, to_host
from gistjax.settings import PARAMETERS_OF_0_1

log = logging.getLogger(__name__)

ARCHITECTURE = "compressor/architecture/"
"""Prefix of the parameters of the architecture under test."""
PROFILE = "selector/profile"
"""The parts that KV heads keep, which are fixed."""


def split_model(model: CompressedLM) -> tuple[nnx.GraphDef[CompressedLM], Any, Any]:
    """Structure, trainable leaves and frozen leaves. `Trainable` is the one filter that decides."""
    graphdef, trainable, frozen = nnx.split(model, Trainable, ...)  # type: ignore[misc]
    return graphdef, trainable, frozen


def abstract_model(
    config: CompressionConfig,
    base: LlamaConfig,
    scan: bool = True,
    execution: Execution | None = None,
) -> CompressedLM:
    """The whole model as shapes and dtypes, its layers stacked or not."""
    dtype = jnp.dtype(config.model.dtype)

    def build() -> CompressedLM:
        llama = Llama(base, random_initializer(jax.random.key(0), dtype), scan, execution)
        return CompressedLM(llama, config, jax.random.key(0))

    return nnx.eval_shape(build)


def parameter_counts(model: CompressedLM) -> dict[str, int]:
    """Parameters by group: the base, the compressor (architecture and connector), and each LoRA."""
    _, trainable, frozen = split_model(model)
    counts = {"base": _size(frozen.base), "compressor": 0, "encoder_lora": 0, "decoder_lora": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
        if (name := path_name(path)) != PROFILE:
            counts[_group(name)] += math.prod(leaf.shape)
    return {**counts, "trainable": sum(counts.values()) - counts["base"]}


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _group(name: str) -> str:
    if name.startswith(("compressor/encoder/lora", "selector/encoder/lora")):
        return "encoder_lora"
    return "decoder_lora" if name.startswith("lora/") else "compressor"


def export_trainable(trainable: Any, path: Path, metadata: dict[str, str]) -> None:
    """Write the trainable leaves as one safetensors file with a checksum, for sharing.

    Raises:
        StorageError: if the disk is full or fails; a file that was there stays.
    """
    arrays = {
        path_name(key): np.asarray(to_host(leaf))
        for key, leaf in jax.tree_util.tree_leaves_with_path(trainable)
    }
    if is_primary():
        save_exported(path, arrays, metadata)


def import_trainable(path: Path, trainable: Any) -> Any:
    """Read what `export_trainable` wrote, in the shapes and shardings of `trainable`.

    Raises:
        CheckpointError: if the file is missing or damaged, or its parameters are not those of
            `trainable`.
    """
    arrays, _ = _load(path)

    def find(key: tuple[Any, ...], leaf: jax.Array) -> Any:
        name = path_name(key)
        found = arrays.get(name)
        if found is None or found.shape != leaf.shape:
            state = "is missing" if found is None else f"has shape {found.shape}"
            raise CheckpointError(
                f"{path} does not fit this configuration: {name} {state}, expected {leaf.shape}. "
                "Use the config.json that lies beside it."
            )
        return put(found.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(find, trainable)


def start_from(
    path: Path, trainable: Any, architecture: str, make: Callable[[], Any] | None = None
) -> Any:
    """Take over the leaves of an earlier stage.

    What the earlier stage did not have stays as it is in `trainable`, and so do architecture, gate
    and connector if it was of another architecture. What is taken must fit: the architecture
    resizes its own parameters, and of the others that have more rows there the first are taken.

    Args:
        path: `compressor.safetensors`, or the run directory that holds it.
        trainable: arrays or, where there is `make`, shapes with shardings.
        architecture: its name in the config.
        make: gives `trainable` as arrays; called if the file does not have all of it.

    Raises:
        CheckpointError: if the file is missing, damaged or of other shapes, has nothing in common
            with `trainable`, or would be left behind in part.
    """
    file = find_exported(path)
    arrays = taken_over(file, architecture)
    arrays |= _resized(arrays, trainable, architecture)
    taken = []

    def find(key: tuple[Any, ...], leaf: jax.Array) -> Any:
        name = path_name(key)
        found = arrays.get(name)
        if found is None:
            return leaf
        if not name.startswith(ARCHITECTURE) and found.shape[1:] == leaf.shape[1:]:
            found = found[: len(leaf)] if found.ndim else found
        if found.shape != leaf.shape:
            raise CheckpointError(
                f"{file} does not fit this configuration: {name} has shape {found.shape}, "
                f"expected {leaf.shape}."
            )
        taken.append(name)
        return put(found.astype(leaf.dtype), leaf.sharding)

    result = jax.tree_util.tree_map_with_path(find, trainable)
    if not taken:
        raise CheckpointError(f"{file} holds no parameter of this configuration.")
    if left := sorted(arrays.keys() - set(taken)):
        raise CheckpointError(
            f"{file} does not fit this configuration, which has no place for {', '.join(left)}: "
            "set lora, encoder, slot_start and connector as where it was trained."
        )
    names = [path_name(key) for key, _ in jax.tree_util.tree_leaves_with_path(trainable)]
    new = [name for name in names if name not in taken]
    log.info("%d parameter arrays from %s%s", len(taken), file, _told_of_new(new))
    return result if make is None or not new else _filled(result, make())


def taken_over(file: Path, architecture: str) -> dict[str, np.ndarray]:
    """Return the arrays by name that a training of an architecture takes over from a file."""
    arrays, metadata = _load(file)
    arrays.pop(PROFILE, None)  # the configuration names the file of its own
    if _architecture(metadata) in (architecture, None):
        return arrays
    own = r"compressor/(architecture/|gate|connector/)"
    own = "compressor/" if architecture in UNCOMPRESSED else own
    return {name: array for name, array in arrays.items() if not re.match(own, name)}


def _told_of_new(names: Sequence[str]) -> str:
    """Return what is said of parameters that an earlier stage did not have."""
    begin = [name for name in names if name != PROFILE]
    shown = ", ".join(begin[:3]) + (", …" if len(begin) > 3 else "")
    said = f"; {len(begin)} that this architecture adds begin anew ({shown})" if begin else ""
    return said + ("; the profile is that of select.profile" if PROFILE in names else "")


def _resized(
    arrays: Mapping[str, np.ndarray], trainable: Any, architecture: str
) -> dict[str, np.ndarray]:
    """The architecture's parameters of a file, as the architecture itself makes them fit."""
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    own = {
        name.removeprefix(ARCHITECTURE): array
        for name, array in arrays.items()
        if name.startswith(ARCHITECTURE) and name in shapes
    }
    if not own:
        return {}
    resize = find_architecture(architecture).resize
    return {
        ARCHITECTURE + name: resize(name, array, shapes[ARCHITECTURE + name])
        for name, array in own.items()
    }


def _filled(tree: Any, made: Any) -> Any:
    """The tree with arrays in place of the shapes that are left in it."""
    return jax.tree.map(
        lambda leaf, new: new if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, tree, made
    )


def find_exported(path: Path) -> Path:
    """The file of an exported compressor, given it or the run directory that holds it.

    Raises:
        CheckpointError: if it is not there.
    """
    file = path / EXPORTED if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"there is no {file}: --config.init_from takes the directory of a finished run, or its "
            f"{EXPORTED}."
        )
    return file


def _load(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of an exported compressor by today's names, and its metadata."""
    arrays, metadata = load_exported(file)
    return {name.replace(*PARAMETERS_OF_0_1): array for name, array in arrays.items()}, metadata


def _architecture(metadata: dict[str, str]) -> str | None:
    """The architecture that a file was trained with; None if it does not say."""
    try:
        name: str = json.loads(metadata["config"])["architecture"]
        return name
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
