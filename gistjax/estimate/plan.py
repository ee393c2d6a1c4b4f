"""The plan of a run, as `--dry_run` prints it: its needs beside what there is.

No weights are touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax

from gistjax.compress.budget import Budget
from gistjax.compress.parameters import abstract_model, parameter_counts
from gistjax.config import CompressionConfig
from gistjax.estimate.cost import Measurement, cost_of, measurements, nearest, tasks_of
from gistjax.estimate.memory import GIB, memory_estimate, prefix_tokens
from gistjax.estimate.ways_out import steps_that_fit
from gistjax.experiment.inputs import check_sources
from gistjax.runtime.devices import memory_limit
from gistjax.runtime.sharding import mesh_problem
from gistjax.validation import check_trains, validate
from gistjax.weights.registry import Source, resolve

FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT_FRACTION = 0.75  # of a GPU's memory that JAX takes


def requirements(config: CompressionConfig, source: Source) -> dict[str, Any]:
    """Return parameter counts, memory and where the weights would come from."""
    counts = parameter_counts(abstract_model(config, source.config))
    prefix = prefix_tokens(source)
    return {
        "base_model": config.model.known_as,
        "weights": source.describe(),
        "parameters": counts,
        "compressor_parameters": counts["compressor"],
        "trainable_parameters": counts["trainable"],
        "memory_estimate_gib": memory_estimate(config, source.config, prefix, counts),
        "nominal_compression_ratio": Budget.of(config).nominal_ratio,
        "rows_per_step": config.batch_size * config.accumulation,
    }


def dry_run(config: CompressionConfig) -> tuple[dict[str, Any], str]:
    """Return the config and the plan of a run, for programs and for people.

    Raises:
        ConfigError: if the config cannot run.
        DataError: if there is no text or no data where they are said to be, or too little.
        CheckpointError: if there is no compressor at `init_from`, or no run at `teacher`.
        WeightsError: if there is no such model.
    """
    validate(config)
    check_trains(config)
    check_sources(config)
    found = plan(config, resolve(config.model, offline=True))
    return {"config": config.to_json(), **found}, for_people(found)


def plan(config: CompressionConfig, source: Source) -> dict[str, Any]:
    """Return what a run needs: `requirements`, whether it fits, steps, hours and disk.

    `hours` are on one of the GPUs `hours_on`, where steps were measured. They are None where the
    base was never measured, or the number of rows is not known. `fits` is about the memory that
    JAX has of this machine's GPU, or else of the one that the hours are stated for: `fits_on`. All
    is of one device that holds the whole model, whatever the mesh; `mesh_problem` says why the mesh
    does not fit the devices here.
    """
    found = requirements(config, source)
    own = [m for m in measurements() if m["base_model"] == config.model.known_as]
    near = nearest(config, own) if own else None
    cost = cost_of(config, found["trainable_parameters"], own)
    hours, limit = cost.hours(1), memory_limit()
    return {
        **found,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "mesh_problem": mesh_problem(config.mesh, jax.device_count()) or None,
        "device_memory_gib": limit and round(limit / GIB, 3),
        **_verdict(config, source, found["memory_estimate_gib"]["total"], near),
        "tasks": tasks_of(config),
        "steps": cost.steps,
        "hours": hours and round(hours, 2),
        "hours_on": near and near["device"],
        "disk_gib": round(cost.disk_gib, 3),
    }


def _verdict(
    config: CompressionConfig, source: Source, total_gib: float, near: Measurement | None
) -> dict[str, Any]:
    """Return whether the run fits, on which GPU with how much memory, and if not, what does."""
    limit = memory_limit()
    if limit:
        name, room = jax.devices()[0].device_kind, limit / GIB
    elif near:
        share = float(os.environ.get(FRACTION) or DEFAULT_FRACTION)
        name, room = near["device"], share * near["device_memory_gib"]
    else:
        return {"fits": None, "fits_on": None, "room_gib": None, "way_out": None}
    fits = total_gib <= room
    way = None if fits else steps_that_fit(config, source.config, prefix_tokens(source), room)
    way_out = way and {"flags": way[0].flags, "about": way[0].about, "total_gib": way[1]}
    return {"fits": fits, "fits_on": name, "room_gib": round(room, 3), "way_out": way_out}


def for_people(found: Mapping[str, Any]) -> str:
    """Return a plan in a few lines."""
    counts = {name: f"{count:,}" for name, count in found["parameters"].items()}
    memory = dict(found["memory_estimate_gib"])
    total = memory.pop("total")
    parts = " + ".join(f"{name} {gib:,.2f}" for name, gib in memory.items())
    limit, steps = found["device_memory_gib"], found["steps"]
    there = f"{limit:,.2f} GiB each" if limit else "no GPU"
    time = "steps unknown: as many as the data set has" if steps is None else f"{steps:,} steps"
    if found["hours"]:
        time += f", about {found['hours']:,.2f} h on one {found['hours_on']}"
        time += ", loading and evaluation included"
    lines = (
        ("base", f"{found['base_model']} ({found['weights']})"),
        ("parameters", ", ".join(f"{name} {count}" for name, count in counts.items())),
        ("memory", f"{parts} = {total:,.2f} GiB, {_fit(found)}"),
        *(() if found["fits"] is not False else (("way out", _way_out(found)),)),
        ("device", f"{found['device']}, {there}"),
        ("mesh", _mesh(found)),
        *((("tasks", _tasks(found["tasks"])),) if found["tasks"] else ()),
        ("time", time),
        ("disk", f"{found['disk_gib']:,.2f} GiB of checkpoints and export"),
    )
    return "\n".join(f"{name:11} {text}" for name, text in lines)


def _tasks(tasks: Mapping[str, Mapping[str, float]]) -> str:
    """Return the mixture: each task's share of the answer tokens, and its training questions."""
    whole = sum(task["weight"] for task in tasks.values())
    return ", ".join(
        f"{name} {task['weight'] / whole:.0%} of answer tokens"
        + (f" ({task['train']:,} questions)" if "train" in task else "")
        for name, task in tasks.items()
    )


def _mesh(found: Mapping[str, Any]) -> str:
    planned = "planned for one device with the whole model, whatever the mesh"
    problem = found["mesh_problem"]
    return f"{planned}; here the run would stop: {problem}" if problem else planned


def _fit(found: Mapping[str, Any]) -> str:
    if found["fits"] is None:
        return "as on a GPU"
    verdict = "fits" if found["fits"] else "does not fit"
    room = f"{found['room_gib']:,.2f} GiB that JAX has of one {found['fits_on']}"
    return f"which {verdict} in the {room}"


def _way_out(found: Mapping[str, Any]) -> str:
    way = found["way_out"]
    more = f"{FRACTION}=0.95 in the environment gives JAX nearly all of a GPU"
    if way is None:
        return f"more GPUs (--config.mesh.fsdp), a smaller base, or shorter contexts; {more}"
    return f"{way['flags']} ({way['about']}: about {way['total_gib']:,.2f} GiB); {more}"
