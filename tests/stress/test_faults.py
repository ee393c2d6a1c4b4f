"""The short form of the trials; `python -m tests.stress` makes all of them.

Locks have theirs where it is cheaper, in `runtime/test_lock.py`.
"""

import json
import signal

import pytest

from . import disk, files, flips, health, kill, signals
from .outcome import outcome
from .process import call, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def undisturbed(folder):
    disk.preload(folder)  # before the first process
    ended = train(folder / "undisturbed")
    assert ended.code == 0, ended.output
    found = outcome(folder / "undisturbed")
    steps = [row["step"] for row in map(json.loads, found["log"]) if "loss" in row]
    assert steps == [1, 2, 4, 6, 8, 10, 12]
    return found


def test_a_run_killed_again_and_again_ends_as_if_it_was_not(folder, undisturbed):
    found = kill.trial(0, 2, folder, undisturbed, 3.0, [])
    assert not found["failure"] and found["killed"].total() == 2


def test_a_signal_saves_and_stops(folder):
    rundir = folder / "signalled"
    ended = train(
        rundir,
        signals.OFTEN,
        watch=lambda process: signals.send_while_training(rundir, signal.SIGTERM, 0, process),
    )
    assert ended.code == signals.STOPPED and "same command again" in ended.output
    assert signals.latest_checkpoint(rundir) == signals.steps_logged(rundir) > 0
    assert not signals.is_group_alive(ended.pid)


def test_no_flipped_bit_goes_unseen(folder, undisturbed):
    source = folder / "flipped"
    source.mkdir()
    call(flips.prepare, folder / "undisturbed", source)
    found = call(flips.trials, list(range(40)), source, folder)
    assert not found["failures"] and found["seen"].total() == 40


def test_damaged_files_are_survived_or_named(folder, undisturbed):
    files.prepare(folder / "interrupted")
    newest_step_missing = files.DAMAGES.index("step missing")
    found = files.trial(newest_step_missing, folder / "interrupted", folder, undisturbed)
    assert found == {"came": "step missing: from step 6", "failure": ""}


def test_a_bad_step_is_not_saved(folder):
    ended = train(folder / "healthy", health.STOPPING)
    assert ended.code == 0, ended.output
    found = health.trial(0, folder, outcome(folder / "healthy"))
    assert found == {"came": "nan loss: stopped", "failure": ""}


def test_a_full_disk_leaves_what_was_saved(folder, undisturbed):
    if not disk.is_preloaded():
        pytest.skip("no C compiler")
    half = disk.writing_calls(folder / "counted") // 4 * 2  # even: the disk is full
    assert not disk.trial(half, folder, outcome(folder / "counted"))["failure"]
