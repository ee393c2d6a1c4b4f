"""The server: a port, and a stop that answers what was accepted."""

from __future__ import annotations

import logging
import math
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.inference.engine import load
from gistjax.inference.store import Store
from gistjax.inference.warming import Progress, warm_up
from gistjax.runtime.devices import device_name, keep_compiled_programs, start_jax
from gistjax.runtime.signals import SIGNALS
from gistjax.serving.app import make_app
from gistjax.serving.connection import Connection
from gistjax.serving.guard import Guard
from gistjax.serving.metrics import Metrics
from gistjax.serving.worker import Worker

log = logging.getLogger(__name__)

CONNECTIONS = 1024
"""At once: each may hold a body in memory."""

WRITER_S = 5.0
"""Seconds that a document waits for another process that writes; questions wait with it."""


@dataclass(frozen=True)
class Listening:
    """Where a server listens, whom it answers, and how much it takes."""

    host: str
    port: int  # 0 takes one that is free
    names: Sequence[str] = ()  # by which clients call this machine, besides those of loopback
    token: str = field(default="", repr=False)  # which requests must have, if it is not empty
    seconds: float = 60.0  # the most that a request may take
    queue: int = 256  # the most questions that wait


def serve(path: Path, run: str, config: CompressionConfig, listening: Listening) -> None:
    """Serve a store until a signal comes; one that is not there is made.

    Args:
        run: directory of the compressor.

    Raises:
        ConfigError: if the address is taken.
        CheckpointError, StorageError: as `Store`.
    """
    bound = bind(listening.host, listening.port)
    log.info("loading %s and its compressor …", config.model.known_as)
    store = open_store(path, run, config)
    server = Server(store, listening, warm_up(store))
    server.run([bound])
    if server.worker.lost:
        raise RuntimeError("the thread that owns the store ended by itself.")


def open_store(path: Path, run: str, config: CompressionConfig) -> Store:
    """Return a store to serve, in a process that has not computed yet."""
    start_jax(config)
    keep_compiled_programs()
    return Store(path, load(run, config), wait_s=WRITER_S)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which nobody else may have then.

    Raises:
        ConfigError: if it cannot be had.
    """
    bound = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # until then another may have it too
    except OSError as error:
        if bound:
            bound.close()
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({error.strerror}): give another --port or "
            "--host."
        ) from error
    return bound


def guarded(
    store: Store, listening: Listening, warming: Iterator[Progress] | None = None
) -> tuple[Guard, Worker]:
    """Return the endpoints with what keeps others out, and the worker, which is to be started."""
    metrics = Metrics()
    metrics.describe(device_name())
    worker = Worker(store, listening.queue, metrics.count_batch, warming)
    metrics.watch(lambda: worker.waiting)
    app = make_app(worker, metrics)
    return Guard(app, metrics, listening.names, listening.token, listening.seconds), worker


class Server(uvicorn.Server):
    """Serves until its worker ends.

    After the first signal nothing more is accepted, and what was accepted is answered; after the
    second it ends at once.
    """

    def __init__(
        self, store: Store, listening: Listening, warming: Iterator[Progress] | None = None
    ):
        app, self.worker = guarded(store, listening, warming)
        config = uvicorn.Config(
            app,
            http=Connection,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,  # it has names of documents
            server_header=False,
            limit_concurrency=CONNECTIONS,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(listening.seconds),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self.worker.start()
        await super().startup(sockets)
        host, port = (sockets or self.servers[0].sockets)[0].getsockname()[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        log.info("listening at http://%s; CTRL-C stops", where)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear the first signal."""
        for name in SIGNALS:
            signal.signal(name, signal.SIG_DFL)
        log.warning(
            "%s: answering what was accepted, then stopping; once more stops at once",
            signal.Signals(sig).name,
        )
        self.worker.stop()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end, ten times a second."""
        return await super().on_tick(counter) or not self.worker.is_alive()
