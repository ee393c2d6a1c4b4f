"""Make the runs of a sweep side by side, over the GPUs of one machine or of a Ray cluster.

    python -m launch.ray_sweep --sweep launch/sweeps/seed.json --out runs/compression_ablations
        [--config.KEY=VALUE …] [--gpus_per_run 4] [--address auto] [--only NAME,…]
        [--list | --dry_run --plan_gpus 1,4,64]

Each run is one Ray task with its own devices, which executes the command line that `--list` prints.
They start in the
order of the file: with the longest first, all GPUs finish at about the same time. Finished runs are
skipped,
interrupted ones resume: start the command again after whatever happened. A run that fails is
reported and does not stop the others. At the end `gistjax.report` writes table and page into
`--out`, and the last line of output says what became of each run. `--dry_run` prints the plan:
runs, devices, expected hours, disk.

Start it from the repository's root. On a cluster (`--address`), `--out` and the data must be on a
file system that all machines see, and gistjax must be installed on each.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from gistjax import sweep
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime import cli
from gistjax.sweep import Run, check, chosen_runs
from launch import worker
from launch.board import Board, progress
from launch.schedule import FAILED, FINISHED, Ended, Job, ready, sole_sweep

log = logging.getLogger(__name__)

REFRESH_S = 1.0
OBJECT_STORE = 100 * 2**20  # bytes: tasks pass command lines, no data
FORWARDED = ("JAX_", "XLA_", "HF_")  # variables that the runs get from the driver


def run_sweep(
    runs: list[Run], out: Path, address: str = "", gpus: float = -1, cpus: float = -1
) -> dict[str, Job]:
    """Make the runs that are not finished.

    Args:
        address: a Ray cluster; empty starts one of this machine alone.
        gpus, cpus: of each run; -1 as the flags say.

    Raises:
        ConfigError: if another sweep is at work in `out`, or no machine has the devices of a run.
    """
    import ray

    jobs = {run.name: Job(run) for run in runs}
    with sole_sweep(out):
        start_ray(address)
        try:
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            resources = resources_of_a_run(machines, gpus, cpus)
            with Board(jobs) as board:
                _work(jobs, resources, board)
        finally:
            ray.shutdown()
    return jobs


def start_ray(address: str) -> None:
    """Connect to a cluster, or start one of this machine alone that ends with this process.

    Raises:
        ConfigError: if there is no cluster at the address.
    """
    import ray

    _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for ahead in ("RAY_prestart_worker_first_driver", "RAY_enable_worker_prestart"):
        os.environ.setdefault(ahead, "0")  # else a worker for each CPU: 2 s on 64, for a few runs
    variables = {key: value for key, value in os.environ.items() if key.startswith(FORWARDED)}
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    local: dict[str, Any] = (
        {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    )
    try:
        ray.init(
            address=address or "local",
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
            **local,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Ray does not start with --address={address!r}: {error}") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own would not wait for runs


def _check_answers(address: str) -> None:
    """Refuse a host that does not answer, for which Ray would wait for minutes.

    Raises:
        ConfigError: if nothing listens at `HOST:PORT`; other addresses are Ray's to understand.
    """
    host = re.fullmatch(r"([^/:]+):(\d+)", address)
    if host is None:
        return
    try:
        socket.create_connection((host[1], int(host[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at --address={address}: {error}. "
            "`ray start --head` prints the address of one."
        ) from error


def resources_of_a_run(
    machines: Sequence[Mapping[str, float]], gpus: float, cpus: float
) -> dict[str, float]:
    """Return `num_gpus` and `num_cpus` of a task.

    Args:
        machines: `GPU` and `CPU` of each.

    Raises:
        ConfigError: if no machine has so many.
    """
    most = {key: max(machine.get(key, 0) for machine in machines) for key in ("GPU", "CPU")}
    gpus = min(most["GPU"], 1) if gpus < 0 else gpus
    wanted = {"GPU": gpus, "CPU": cpus if cpus >= 0 else 1 if gpus else most["CPU"]}
    if not any(all(m.get(key, 0) >= wanted[key] for key in wanted) for m in machines):
        raise ConfigError(
            f"no machine has {gpus:g} GPUs and {wanted['CPU']:g} CPUs for a run (the most are "
            f"{most['GPU']:g} and {most['CPU']:g}): lower --gpus_per_run or --cpus_per_run."
        )
    return {"num_gpus": wanted["GPU"], "num_cpus": wanted["CPU"]}


def _work(jobs: dict[str, Job], resources: dict[str, Any], board: Board) -> None:
    """Submit what is ready and take in what ended, until nothing is left."""
    import ray

    # A worker that had a GPU may take the next run: what it starts, not itself, uses the GPU.
    options: dict[str, Any] = {"max_retries": 0, "max_calls": 0, **resources}
    remote = ray.remote(**options)
    attempt = remote(worker.attempt)
    running: dict[Any, Job] = {}
    try:
        while True:
            for job in ready(jobs):
                job.submit()
                task = attempt.options(name=job.run.name)
                running[task.remote(job.run.command, os.getcwd(), str(job.run.workdir))] = job
            board.show()
            if not running:
                return
            ended, _ = ray.wait(list(running), timeout=REFRESH_S)
            for reference in ended:
                job = running.pop(reference)
                job.end(_outcome(reference, job.run.workdir))
                _report(job)
    finally:  # where it is interrupted, the runs may save what they have
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=worker.PATIENCE_S)


def _outcome(reference: Any, workdir: Path) -> Ended:
    import ray

    try:
        return Ended(*ray.get(reference))
    except ray.exceptions.RayTaskError as error:  # the attempt itself failed, say on a full disk
        return Ended(1, str(error))
    except ray.exceptions.RayError as error:
        first_line = str(error).splitlines()[:1]
        return Ended(None, "\n".join([*first_line, worker.tail(workdir)]))


def _report(job: Job) -> None:
    if job.state == FINISHED:
        return
    again = "set aside" if job.state == FAILED else "it will be tried again"
    log.error("%s: %s; %s. The end of its log:\n%s\n", job.run.name, job.why, again, job.tail)


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Make the runs, or print their commands or the plan."""
    out, runs = Path(args.out), chosen_runs(args)
    if args.list:
        print("\n".join(run.command for run in runs))
        return
    configs = check(runs)
    if args.dry_run:
        from launch import plan  # which imports all that trains

        cli.print_result(plan.dry_run(configs, args.plan_gpus, args.gpus_per_run))
        return
    for run in runs:
        if RunDir(run.workdir).is_finished:
            RunDir(run.workdir).metrics()  # refuses a damaged one
    log.info("%s", "\n".join(run.command for run in runs))
    jobs = run_sweep(runs, out, args.address, args.gpus_per_run, args.cpus_per_run)
    if any(job.finished for job in jobs.values()):
        command = [sys.executable, "-m", "gistjax.report", f"--runs={out}"]
        # If the drawing library is missing, the report says so itself.
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    cli.print_result({name: _summary(job) for name, job in jobs.items()})
    if any(job.state != FINISHED for job in jobs.values()):
        sys.exit(1)


def _summary(job: Job) -> dict[str, Any]:
    f1 = progress(job.run.workdir).get("f1")
    result = {"state": job.state, "attempts": job.attempts, "final_f1": f1}
    return result if job.state == FINISHED else {**result, "why": job.why}


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags, those of `gistjax.sweep` included."""
    sweep.define_flags(values)
    flags.DEFINE_float(
        "gpus_per_run",
        -1,
        "GPUs of each run; by default 1, or 0 where there are none.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "cpus_per_run",
        -1,
        "CPUs of each run; by default 1 beside a GPU, else all of a machine.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "address",
        "",
        "A running Ray cluster, such as `auto`; by default this machine alone.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "plan_gpus", ["1"], "With --dry_run: numbers of GPUs to plan for.", flag_values=values
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: CompressionConfig())
