"""A store with two documents, on a tiny random base, servers on it, and a way to hold one up."""

import contextlib
import dataclasses
import threading

import pytest

import gistjax
from gistjax.config import SelectConfig
from gistjax.serving.server import Listening, Server, bind
from tests.helpers.client import Client, wait_for
from tests.helpers.runs import SELECTED, write_run

CONFIG = SELECTED.replace(
    select=SelectConfig("knorm"),
    encoder=dataclasses.replace(SELECTED.encoder, bidirectional=True),
    data=dataclasses.replace(SELECTED.data, context_tokens=64, context_buckets=(64,)),
)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    made = gistjax.Store(folder / "store", gistjax.load(write_run(folder / "run", CONFIG)))
    made.add("mill", "The mill was built by Anneke Dursel.")
    made.add("notes/port", "The harbour of Ostrel was dredged.")
    return made


@pytest.fixture
def batches(store, monkeypatch):
    """How many questions each run of the compiled program was given, padding included."""
    answer, seen = store.engine.programs.answer, []

    def counted(state, ids, size):
        seen.append(len(ids))
        return answer(state, ids, size)

    monkeypatch.setattr(store.engine.programs, "answer", counted)
    return seen


@pytest.fixture
def held_up():
    """Keeps a worker busy in a `with` block."""

    @contextlib.contextmanager
    def hold(worker):
        begun, release = threading.Event(), threading.Event()
        worker.do(lambda: begun.set() or release.wait(20))
        assert begun.wait(20)
        try:
            yield
        finally:
            release.set()

    return hold


@pytest.fixture(scope="module")
def start(store):
    """Starts servers on the store, or on another."""
    threads = []

    def started(store=store, warming=None, **listening):
        bound = bind("127.0.0.1", 0)
        port = bound.getsockname()[1]
        server = Server(store, Listening("127.0.0.1", port, **listening), warming)
        threads.append((server, threading.Thread(target=server.run, args=([bound],))))
        threads[-1][1].start()
        wait_for(lambda: server.started)
        return Client(server, port)

    yield started
    for server, thread in threads:
        server.worker.stop()
        thread.join(20)
        assert not thread.is_alive()
