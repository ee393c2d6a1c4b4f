"""The mesh, and the one table that says how every parameter is laid out on it.

Axes: `data` splits rows only; `fsdp` splits rows and parameters; `tensor` splits heads and
feed-forward width. By default all devices are along `data` and every parameter is replicated.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import GetAttrKey

from gistjax.config import MeshConfig
from gistjax.errors import ConfigError

ROWS = ("data", "fsdp")
"""The mesh axes that a batch's rows are split over."""

RULES: tuple[tuple[str, P], ...] = (
    # Each spec is of the last axes; axes before them, such as L of stacked layers, stay whole.
    # The base. Of the fused matrices, key/value heads and feed-forward width are split.
    (r"(encoder_)?base/(embedding|output)", P("tensor", "fsdp")),
    (r"(encoder_)?base/layers/(\d+/)?qkv", P("fsdp", "tensor", None, None)),
    (r"(encoder_)?base/layers/(\d+/)?qkv_bias", P("tensor", None, None)),
    (r"(encoder_)?base/layers/(\d+/)?gate_up", P("fsdp", None, "tensor")),
    (r"(encoder_)?base/layers/(\d+/)?(o|down)", P("tensor", "fsdp")),
    (r"(encoder_)?base/.*norm", P()),
    # Adapters [L, in, R] and [L, R, out]: the wide side follows its projection.
    (r".*lora/adapters/(q|k|v|gate|up)/a", P("fsdp", None)),
    (r".*lora/adapters/(q|k|v|gate|up)/b", P(None, "tensor")),
    (r".*lora/adapters/(o|down)/a", P("tensor", None)),
    (r".*lora/adapters/(o|down)/b", P(None, "fsdp")),
)
"""Parameter name to PartitionSpec: the first that matches. Other parameters declare their own."""


def make_mesh(config: MeshConfig) -> Mesh:
    """Return the device mesh of a run, with Auto axes.

    Raises:
        ConfigError: if the axes do not multiply to the number of devices.
    """
    n = jax.device_count()
    if problem := mesh_problem(config, n):
        raise ConfigError(problem)
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    given = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: n // given if size == -1 else size for axis, size in sizes.items()}
    return jax.make_mesh(
        tuple(filled.values()), tuple(filled), axis_types=(AxisType.Auto,) * len(filled)
    )


def mesh_problem(config: MeshConfig, devices: int) -> str:
    """Return why a mesh does not fit so many devices, and what does; nothing if it fits."""
    axes = {axis: getattr(config, axis) for axis in ("data", "fsdp", "tensor")}
    given = {axis: size for axis, size in axes.items() if size != -1}
    takes, grows = math.prod(given.values()), len(given) < len(axes)
    if devices == takes or (grows and devices % takes == 0):
        return ""
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in given.items() if size > 1)
    number = f"{'a multiple of ' if grows and takes > 1 else ''}{takes}"
    *fits, last = [str(size) for size in range(1, devices + 1) if devices % size == 0]
    there = "there is 1" if devices == 1 else f"there are {devices}"
    return (
        f"{named or 'a mesh of 1 x 1 x 1'} takes {number} device{'s' * (number != '1')}, but "
        f"{there}: set --config.mesh.data=-1 (what is left), and the other axes so that their "
        f"product is {', '.join(fits)}{' or ' if fits else ''}{last}."
    )


def one_device() -> Mesh:
    """Return a mesh of the first device alone."""
    return jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh, declared: P | None = None) -> P:
    """Return the PartitionSpec of a parameter; axes that do not divide a dimension are left out.

    It is the declared one, else that of the first rule that matches. Vectors without either are
    replicated.

    Raises:
        ConfigError: naming a matrix that declares nothing and that no rule matches.
    """
    rules = (spec for pattern, spec in RULES if re.fullmatch(pattern, path))
    spec = declared if declared is not None else next(rules, None)
    if spec is None:
        if len(shape) > 1:
            raise ConfigError(
                f"no sharding rule matches the parameter {path!r}: declare its partition_spec (in "
                "an architecture by `layers.matrix` or `layers.parameter`), or add a rule to "
                "`sharding.RULES`."
            )
        spec = P()
    whole = (None,) * (len(shape) - len(spec) if spec else 0)
    axes = zip((*whole, *spec), shape, strict=bool(spec))
    return P(*(_fitting(axis, size, mesh) for axis, size in axes))


def _fitting(axis: str | None, size: int, mesh: Mesh) -> str | None:
    return axis if axis is not None and size % mesh.shape[axis] == 0 else None


def path_name(path: tuple[Any, ...]) -> str:
    """Return a JAX key path as `base/layers/qkv`, whatever containers it leads through."""
    if path and isinstance(path[-1], GetAttrKey) and path[-1].name == "value":
        path = path[:-1]  # the array inside an nnx.Variable
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path
    )


def shardings_of(tree: Any, mesh: Mesh, prefix: str = "") -> Any:
    """Return a NamedSharding for every leaf of a tree of parameters (arrays or shapes).

    Raises:
        ConfigError: as `spec_of` says.
    """

    def of_variable(path: tuple[Any, ...], variable: Any) -> Any:
        is_variable = isinstance(variable, nnx.Variable)
        declared = variable.get_metadata().get("partition_spec") if is_variable else None
        return jax.tree_util.tree_map_with_path(
            lambda rest, leaf: NamedSharding(
                mesh, spec_of(prefix + path_name(path + rest), leaf.shape, mesh, declared)
            ),
            variable,
        )

    return jax.tree_util.tree_map_with_path(
        of_variable, tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def gathered_sharding(path: str, shape: tuple[int, ...], mesh: Mesh | None) -> NamedSharding | None:
    """Return the layout of a parameter in use: like its parts, but gathered over `fsdp`.

    None where nothing is split over `fsdp`.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return None
    return _gathered(NamedSharding(mesh, spec_of(path, shape, mesh)))


def _gathered(sharding: NamedSharding) -> NamedSharding:
    spec = (None if axis == "fsdp" else axis for axis in sharding.spec)
    return NamedSharding(sharding.mesh, P(*spec))


def all_gather(tree: Any, shardings: Any) -> Any:
    """Gather parameters over `fsdp` within a jitted function; their gradient is split again.

    Args:
        shardings: those of the leaves, as `shardings_of` returns them.
    """
    return jax.tree.map(
        lambda leaf, sharding: (
            leaf
            if sharding.mesh.shape["fsdp"] == 1
            else jax.lax.with_sharding_constraint(leaf, _gathered(sharding))
        ),
        tree,
        shardings,
    )


def shard_rows(x_B: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Split an activation's rows over `ROWS` within a jitted function.

    Without it, parameters that are split would have activations split like themselves.
    """
    if mesh is None or mesh.shape["fsdp"] == 1 or x_B.shape[0] % rows_per_step(mesh):
        return x_B
    split: jax.Array = jax.lax.with_sharding_constraint(x_B, NamedSharding(mesh, P(ROWS)))
    return split


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the layout in which every device holds the whole array."""
    return NamedSharding(mesh, P())


def put_batch(batch: Any, mesh: Mesh, leading: int = 0) -> Any:
    """Place host arrays on the mesh, rows split over `ROWS`; `leading` axes before them stay whole.

    What all rows share, by its name's suffix `_P` or `_1`, is replicated.
    """
    rows = NamedSharding(mesh, P(*([None] * leading), ROWS))
    return put(
        batch,
        jax.tree_util.tree_map_with_path(
            lambda path, _: replicated(mesh) if path_name(path).endswith(("_P", "_1")) else rows,
            batch,
        ),
    )


def put(tree: Any, shardings: Any) -> Any:
    """Put arrays, which every process has, where they belong; each process puts its own part."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x: Any, sharding: NamedSharding) -> Any:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)  # it is spread over the processes already
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    with jax.transfer_guard("allow"):  # it is asked for
        return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Return whole arrays on the host of every process, wherever their parts are.

    All processes must call it in the same order.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(
        lambda x: (
            np.asarray(x)
            if x.is_fully_addressable or x.is_fully_replicated
            else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )


def any_process(flag: bool) -> bool:
    """Return True if the flag is set in any process. All must ask at the same time."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_primary() -> bool:
    """Return True in the one process that writes results."""
    return jax.process_index() == 0


def rows_per_step(mesh: Mesh) -> int:
    """Return the number of shares that a batch's rows are split into."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])
