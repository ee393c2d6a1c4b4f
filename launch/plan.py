"""Plan a sweep without starting it: steps, memory, hours and disk of its runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.estimate.cost import Cost, cost_of, measurements, project
from gistjax.estimate.plan import requirements
from gistjax.weights.registry import resolve

log = logging.getLogger(__name__)


def dry_run(
    configs: Mapping[str, CompressionConfig], plan_gpus: Sequence[str], gpus_per_run: float
) -> dict[str, Any]:
    """Print the plan as tables and return it.

    Args:
        plan_gpus: numbers of GPUs to plan for.
        gpus_per_run: of each run; below 0 for one.

    Raises:
        ConfigError: if `plan_gpus` are not numbers, or a run has no GPU.
    """
    gpus_per_run = 1 if gpus_per_run < 0 else gpus_per_run
    enough = all(gpus.isdecimal() and int(gpus) >= max(gpus_per_run, 1) for gpus in plan_gpus)
    if not (plan_gpus and enough and gpus_per_run):
        raise ConfigError(
            f"--plan_gpus={','.join(plan_gpus)} must be numbers, at least "
            f"--gpus_per_run={gpus_per_run:g} each, and that more than 0."
        )
    jax.config.update("jax_platforms", "cpu")  # shapes alone are looked at
    measured, runs, costs = measurements(), {}, {}
    for name, config in configs.items():
        needs = requirements(config, resolve(config.model, offline=True))
        costs[name] = cost_of(config, needs["trainable_parameters"], measured)
        runs[name] = _plan_of(name, needs, costs[name], gpus_per_run)
    totals = [project(costs, int(gpus), gpus_per_run) for gpus in plan_gpus]
    for total in totals:
        log.info("%s", ", ".join(f"{key} {value}" for key, value in total.items()))
    return {"runs": runs, "totals": totals}


def _plan_of(name: str, needs: Mapping[str, Any], cost: Cost, gpus: float) -> dict[str, Any]:
    """Print and return the plan of one run."""
    hours, memory = cost.hours(gpus), needs["memory_estimate_gib"]
    log.info(
        "%-28s %6d steps  %s  %6.1f GiB of memory  %5.1f GiB on disk",
        name,
        cost.steps,
        "hours not known" if hours is None else f"{hours:6.2f} h",
        memory["total"],
        cost.disk_gib,
    )
    return {
        "trainable_parameters": needs["trainable_parameters"],
        "memory_estimate_gib": memory,
        "steps": cost.steps,
        "hours": hours,
        "disk_gib": cost.disk_gib,
    }
