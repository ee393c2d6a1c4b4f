"""One run over the devices of several processes."""

from __future__ import annotations

import logging
import os
import re

import jax

from gistjax.errors import ConfigError

ABOUT = (
    "One run over the devices of several processes, each of which is given the same command: "
    "`auto` under SLURM, MPI or Kubernetes, else ADDRESS:PORT,PROCESSES,ID of this process. "
    "--workdir must be a folder that all see."
)
"""Help of the flag that names the other processes."""


def join(word: str) -> None:
    """Meet the other processes of this run; from then on all their devices form one mesh.

    One process on a host takes all devices of its host.

    Args:
        word: `auto` under SLURM, MPI or Kubernetes, else `ADDRESS:PORT,PROCESSES,ID`.

    Raises:
        ConfigError: if the processes cannot be met.
    """
    match = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", word)
    if not match and word != "auto":
        raise ConfigError(
            f"--distributed={word} must be auto, or ADDRESS:PORT,PROCESSES,ID as in "
            "10.0.0.1:8476,2,0."
        )
    try:
        if match:
            jax.distributed.initialize(match[1], int(match[2]), int(match[3]))
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--distributed={word} does not come together: {error}") from error
    if one_process_a_host():  # JAX takes SLURM's and Open MPI's processes to have one GPU each
        jax.config.update("jax_cuda_visible_devices", "all")
    if jax.process_index():
        logging.getLogger().setLevel(logging.WARNING)  # the others need not repeat the log


def one_process_a_host() -> bool:
    """Whether SLURM or Open MPI started this process, and none beside it on this host."""
    tasks, nodes = (os.environ.get(name) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES"))
    alone_in_slurm = tasks is not None and tasks == nodes
    return alone_in_slurm or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
