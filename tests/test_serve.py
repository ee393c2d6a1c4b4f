"""The command: what is refused before anything is loaded, and a server from start to stop."""

import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
from urllib.request import Request, urlopen

import pytest
from absl import flags

from gistjax import serve
from gistjax.config import CompressionConfig, SelectConfig
from gistjax.errors import CheckpointError, ConfigError
from tests.helpers.runs import SELECTED, write_run


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "short").write_text("0123")

    def call(*words, config=None):
        values = flags.FlagValues()
        serve.define_flags(values)
        values(["serve", *words])
        serve.main(config or CompressionConfig(), values)

    return call


@pytest.mark.slow
def test_it_serves_until_a_signal_comes(command, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    encoder = dataclasses.replace(SELECTED.encoder, bidirectional=True)
    config = SELECTED.replace(select=SelectConfig("knorm"), encoder=encoder)
    run, seen = write_run(tmp_path / "run", config), {}

    def ask():
        while not (lines := [line for line in caplog.messages if "listening at" in line]):
            time.sleep(0.01)
        url = lines[0].split()[2].rstrip(";")
        new = json.dumps({"name": "mill", "text": "The mill was built in 1783."}).encode()
        token = {"Authorization": "Bearer 0123456789abcdef", "Content-Type": "application/json"}
        try:
            seen["added"] = json.load(urlopen(Request(f"{url}/documents", new, token), timeout=20))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    words = (f"--run={run}", "--store=kept", "--port=0", "--token_file=token")
    command(*words, config=config)
    client.join(20)
    assert seen["added"]["compressed"] == 1 and (tmp_path / "kept" / "index.sqlite").is_file()
    assert "SIGTERM: answering what was accepted" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "which store"),
        (("--store=kept", "--host=0.0.0.0"), "nothing would keep anyone out: give --token_file"),
        (("--store=kept", "--host=docs.example"), "give --token_file"),
        (("--store=kept", "--host=::", "--token_file=token"), "give --name"),
        (("--store=kept", "--token_file=nothing"), "cannot be read"),
        (("--store=kept", "--token_file=short"), "16 or more plain characters"),
    ],
)
def test_what_would_not_be_safe_is_refused(command, words, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gistjax.serving.server", None)
    with pytest.raises(ConfigError, match=message):
        command(*words)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1"])
def test_loopback_needs_no_token(host):
    serve.check_reach(host, [], "")
    serve.check_reach(host, ["localhost"], "")
    with pytest.raises(ConfigError, match="through a proxy, and nothing would keep anyone out"):
        serve.check_reach(host, ["docs.example.org"], "")
    serve.check_reach(host, ["docs.example.org"], "0123456789abcdef")


def test_other_files_are_no_store(command, tmp_path):
    with pytest.raises(CheckpointError, match="has other files in it"):
        command(f"--store={tmp_path}")


def test_what_is_not_installed_is_told(command, monkeypatch):
    monkeypatch.delitem(sys.modules, "gistjax.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"needs the package uvicorn: pip install -e '.\[serve\]"):
        command("--store=kept")


def test_a_port_that_is_taken_is_told():
    server = pytest.importorskip("gistjax.serving.server")
    refused = pytest.raises(ConfigError, match="give another --port")
    with server.bind("127.0.0.1", 0) as taken, refused:
        server.bind("127.0.0.1", taken.getsockname()[1])
