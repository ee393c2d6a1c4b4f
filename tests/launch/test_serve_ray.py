"""Replicas of a server on one store: what ends is replaced, and what was accepted stays."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import gistjax
from gistjax.serving.server import bind
from tests.helpers.runs import SELECTED, write_run

pytestmark = pytest.mark.long
pytest.importorskip("ray", reason="needs the extra `launch`")

REPLICA = "ray::ServeReplica"


class Client:
    """Sends requests to a port."""

    def __init__(self, port):
        self.port = port

    def __call__(self, method, path, body=None):
        """Status and body of a reply; 0 where there is none."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 20)) as sent:
            try:
                sent.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
                reply = sent.getresponse()
                return reply.status, reply.read().decode()
            except (OSError, http.client.HTTPException):
                return 0, ""

    def until(self, *request):
        """Body of the first reply that is no error."""
        return wait_for(lambda: (reply := self(*request))[0] == 200 and reply[1])

    def names(self):
        """Names of the documents that whichever replica holds."""
        return {one["name"] for one in json.loads(self.until("GET", "/documents"))["documents"]}


def wait_for(value, seconds=90):
    deadline = time.monotonic() + seconds
    while not (found := value()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def start(folder, *words):
    command = [sys.executable, "-m", "launch.serve_ray", f"--store={folder}/store", *words]
    with (folder / "log").open("w") as log:
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [*command, f"--run={folder}/run"], stderr=log, cwd=root, start_new_session=True
        )


@pytest.fixture
def folder(tmp_path):
    run = write_run(tmp_path / "run", SELECTED)
    gistjax.Store(tmp_path / "store", gistjax.load(run)).add("mill", "The mill was built.")
    return tmp_path


def replicas(server):
    found = set()
    for child in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(child.cmdline()).startswith(REPLICA):
                found.add(child.pid)
    return found


def test_a_killed_replica_is_replaced_and_no_accepted_document_is_lost(folder):
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    server, client = start(folder, f"--port={port}", "--gpus=0"), Client(port)
    try:
        question = {"question": "Who built the mill?", "within": "mill"}
        client.until("POST", "/ask", question)
        first = wait_for(lambda: len(found := replicas(server)) == 2 and found)
        accepted = {"mill"}
        for turn, pid in enumerate(sorted(first)):
            for number in range(6):
                if number == 2:
                    os.kill(pid, signal.SIGKILL)
                name = f"note {turn} {number}"
                client.until("POST", "/documents", {"name": name, "text": f"Pump {name} turns."})
                accepted.add(name)
                client.until("POST", "/ask", question)  # the other goes on meanwhile
            now = wait_for(lambda: len(found := replicas(server)) == 2 and found)
            assert pid not in now
        assert not first & replicas(server)  # so each of the first answered alone, and of these
        time.sleep(1)
        for _ in range(20):
            assert client.names() == accepted
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, (folder / "log").read_text()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
    assert gistjax.Store(folder / "store", gistjax.load(folder / "run")).check() == []


def test_gpus_that_are_not_there_are_told_of(folder):
    server = start(folder, "--gpus=64", "--port=0")
    assert server.wait(90) == 2
    assert "2 replicas need 128 GPUs" in (folder / "log").read_text()
