"""Serve a store over HTTP from several processes, each on GPUs of its own.

    python -m launch.serve_ray --store STORE [--replicas=2] [--gpus=1] [--address=auto]
        [the flags of gistjax.serve]

The app is that of `gistjax.serve`, as a deployment of Ray Serve, behind the HAProxy that comes with
it. All replicas have one store: each asks it and sees at once what another has added; one adds at a
time, and the others wait for it. A replica that ends is replaced. What it was asked is answered
with an error, so ask again; a document that was accepted is in the store. Metrics (`/metrics`) are
those of the replica that is asked. On a cluster (--address) the store must be on a file system with
locks that all machines see. CTRL-C or SIGTERM ends it.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from absl import flags
from starlette.types import ASGIApp

from gistjax import serve as one_server
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError, first_line
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.inference.warming import warm_up
from gistjax.runtime import cli
from gistjax.serving.server import Listening, guarded, open_store
from gistjax.serving.worker import MOST_QUESTIONS
from launch.ray_sweep import start_ray

log = logging.getLogger(__name__)

NAME = "gistjax"
SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # three times the requests of Ray's own proxy (2 cores)
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # 30 s, if nothing is said
}
"""Ray Serve's, which it reads from the environment as it is imported."""
HEALTH_S = 2.0
"""Seconds between two looks at whether a replica lives."""


class Replica:
    """One of the processes: a store, its worker and the endpoints."""

    def __init__(self, path: Path, run: str, config: CompressionConfig, listening: Listening):
        store = open_store(path, run, config)
        for _ in warm_up(store):  # before anything is asked of it
            pass
        self._app, self._worker = guarded(store, listening)
        self._worker.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    def check_health(self) -> None:
        """Have Ray replace this replica if nothing answers any more."""
        if not self._worker.is_alive():
            raise RuntimeError("the thread that owns the store has ended.")


def deploy(
    path: Path, run: str, config: CompressionConfig, listening: Listening, replicas: int, gpus: int
) -> None:
    """Start replicas on the Ray that runs, and the proxy before them; they serve until it ends.

    Args:
        gpus: of each replica.

    Raises:
        ConfigError: if there are not so many GPUs, or a replica does not start.
    """
    import ray
    from ray import serve

    there = int(ray.cluster_resources().get("GPU", 0))
    if replicas * gpus > there:
        raise ConfigError(
            f"{replicas} replicas need {replicas * gpus} GPUs, and Ray sees {there}: give fewer "
            "--replicas, or --gpus=0 for CPUs."
        )
    quiet = {"enable_access_log": False, "log_level": "ERROR"}  # it would have names of documents
    http = {"host": listening.host, "port": listening.port}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        num_replicas=replicas,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 0},
        max_ongoing_requests=listening.queue + MOST_QUESTIONS,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=listening.seconds,
        max_constructor_retry_count=replicas,
        logging_config=quiet,
    )
    try:
        serve.run(deployment.bind(path, run, config, listening), name=NAME)
    except RuntimeError as error:
        raise ConfigError(
            f"a replica does not start ({first_line(error)}): `python -m gistjax.serve` with the "
            "same flags tells why."
        ) from error


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Serve until a signal comes."""
    path, token = one_server.checked(args)
    names = (args.host, *args.name)
    listening = Listening(args.host, args.port, names, token, args.seconds, args.queue)
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    import ray
    from ray import serve

    start_ray(args.address)
    try:
        deploy(path.absolute(), args.run, config, listening, args.replicas, args.gpus)
        log.info("listening at http://%s:%d; CTRL-C stops", args.host, args.port)
        while True:
            signal.pause()
    except KeyboardInterrupt:  # of SIGTERM too
        log.warning("stopping")
    finally:
        serve.shutdown()
        ray.shutdown()


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    one_server.define_flags(values)
    flags.DEFINE_integer("replicas", 2, "Processes that answer.", 1, flag_values=values)
    flags.DEFINE_integer("gpus", 1, "GPUs of each; 0: CPUs.", 0, flag_values=values)
    about = "Address of a Ray cluster; by default one of this machine alone is started."
    flags.DEFINE_string("address", "", about, flag_values=values)


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: RunDir(cli.option(argv, "run", str(SHIPPED))).config())
