"""Trained leaves: how they begin, and their files.

A tree of dictionaries: `enc` and `dec` hold the adapters, `scorer` the learned scorers by name,
`bias` a number a KV head. Leaves are fp32 in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gistjax.errors import CheckpointError
from launch.selection.model import MATRICES, Base, Leaves
from launch.selection.options import Options
from launch.selection.scorers import new_scorer

ADAPTERS = ("enc", "dec")
SCALE_SUFFIX = "#"


def new_leaves(base: Base, options: Options) -> Leaves:
    """Return leaves to start from, the same for every seed, so that runs can be averaged."""
    keys = iter(jax.random.split(jax.random.key(0), 64))
    L = base.shape.n_layers

    def uniform(*shape: int) -> jax.Array:
        return jax.random.uniform(next(keys), shape, minval=-1.0, maxval=1.0)

    encoder = {}
    for name in MATRICES:
        _, inner, outer = base.layers[name].shape
        a = uniform(L, inner, options.rank) / inner**0.5
        encoder[name] = {"a": a, "b": jnp.zeros((L, options.rank, outer))}
    leaves: Leaves = {"enc": encoder}
    if options.learned:
        leaves["scorer"] = {options.score: new_scorer(options.score, base, uniform)}
    if options.bias:
        leaves["bias"] = jnp.zeros((L, base.shape.n_kv_heads))
    return leaves


def starting_leaves(base: Base, options: Options) -> Leaves:
    """Return the leaves of --init, completed by new ones.

    The mean of several files is written and read again: what is measured is what the file holds.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    leaves = new_leaves(base, options)
    files = [Path(file) for file in options.init.split(",") if file]
    if files:
        loaded = mean_of([load(file) for file in files])
        if "scorer" in loaded and "scorer" in leaves:
            loaded["scorer"] = {**leaves["scorer"], **loaded["scorer"]}
        leaves |= {k: v for k, v in loaded.items() if k != "bias" or options.bias}
    if len(files) > 1:
        path = Path(options.out) / f"{options.name}.q8.npz"
        save(leaves, path, bits=8)
        leaves = load(path)
    if options.adapters == 2 and "dec" not in leaves:
        leaves["dec"] = jax.tree.map(jnp.copy, leaves["enc"])
    return leaves


def mean_of(trees: list[Leaves]) -> Leaves:
    """Return the mean of trees with the same leaves."""
    return jax.tree.map(lambda *x: sum(x) / len(x), *trees)


def count(leaves: Leaves) -> dict[str, int]:
    """Return the number of parameters of each part."""
    return {k: sum(x.size for x in jax.tree.leaves(part)) for k, part in leaves.items()}


def save(leaves: Leaves, path: Path, bits: int = 16) -> None:
    """Write leaves in fp16.

    Args:
        bits: 8 for adapters in int8, with a scale a layer and rank.
    """
    arrays: dict[str, np.ndarray] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(leaves)[0]:
        name = "/".join(key.key for key in keys)
        x = np.asarray(leaf, np.float32)
        if bits == 8 and name.split("/")[0] in ADAPTERS:
            over = 1 if name.endswith("/a") else 2  # the axis that is not the rank
            scale = np.maximum(np.abs(x).max(over, keepdims=True) / 127, 1e-12)
            arrays[name] = np.round(x / scale).astype(np.int8)
            arrays[name + SCALE_SUFFIX] = scale.astype(np.float32)
        else:
            arrays[name] = x.astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Leaves:
    """Return the leaves in a file, in fp32.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no leaves can be read from {path}: {error}.") from error
    leaves: Leaves = {}
    for name, stored in arrays.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        *folders, last = name.split("/")
        inner: dict[str, Any] = leaves
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = jnp.array(stored.astype(np.float32) * arrays.get(name + SCALE_SUFFIX, 1))
    return leaves
