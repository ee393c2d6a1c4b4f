import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from gistjax.errors import CheckpointError, InUseError, StorageError
from gistjax.runtime.files import RunLock


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path):
    holder = rf"process {os.getpid()} on {socket.gethostname()}"
    with RunLock(tmp_path), pytest.raises(CheckpointError, match=holder):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass


def test_who_waits_holds_it_as_soon_as_it_is_free(tmp_path):
    first = RunLock(tmp_path)
    first.__enter__()
    threading.Timer(0.1, first.__exit__).start()
    with RunLock(tmp_path, wait_s=20), pytest.raises(InUseError):
        RunLock(tmp_path, wait_s=0.01).__enter__()


def test_a_directory_that_was_made_for_nothing_goes(tmp_path):
    with RunLock(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / "a" / "run.lock").exists()
    assert not list(tmp_path.iterdir())
    with RunLock(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "config.json").touch()
    with RunLock(tmp_path / "runs" / "b"):
        pass
    assert {path.name for path in (tmp_path / "runs").rglob("*")} == {
        "a",
        "run.lock",
        "config.json",
    }
    (tmp_path / "there").mkdir()
    with RunLock(tmp_path / "there"):
        pass
    assert (tmp_path / "there" / "run.lock").exists()


def test_who_waited_for_a_directory_that_has_gone_holds_the_one_that_is_there(
    tmp_path, monkeypatch
):
    lock, flock = RunLock(tmp_path / "run"), fcntl.flock

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        lock.path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock, pytest.raises(CheckpointError, match="in use by process"):
        RunLock(tmp_path / "run").__enter__()


def test_room_is_asked_for_only_where_it_is_lacking(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"Not a directory\): choose another --workdir"):
        RunLock(tmp_path / "file" / "x").__enter__()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageError, match=r"run\.lock cannot be locked: No locks available"):
        RunLock(tmp_path).__enter__()


def test_the_lock_of_a_killed_process_is_recovered(tmp_path, caplog):
    script = (
        "import os, pathlib, sys; from gistjax.runtime.files import RunLock\n"
        "with RunLock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path])
    assert process.wait() == -9
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == process.pid
    with RunLock(tmp_path):
        assert f"process {process.pid}" in caplog.text
