"""A store that several processes use: all may ask, and one at a time adds."""

import subprocess
import sys

import pytest

import gistjax

pytestmark = pytest.mark.slow

ADDS = """
import itertools, sys, gistjax
store = gistjax.Store(sys.argv[1], gistjax.load(sys.argv[2]), wait_s=20)
for number in itertools.count():
    store.add(f"note {number}", f"Note {number} says that pump {number} is checked.")
    print(f"note {number}", flush=True)
"""


def test_what_one_process_has_accepted_another_answers_from_and_a_kill_loses_none(
    engine, rundir, tmp_path
):
    store = gistjax.Store(tmp_path / "store", engine, wait_s=20)
    store.add("mill", "The mill was built in 1783.")
    command = [sys.executable, "-c", ADDS, str(tmp_path / "store"), str(rundir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        accepted = []
        for number in range(4):
            accepted.append(other.stdout.readline().strip())
            told = store.ask("Is the pump checked?", within=accepted[-1])  # while it adds the next
            assert f"pump {number} is checked" in told.pieces[0].text
            if number % 2 == 0:
                store.add(f"own {number}", f"The port was dredged in {number}.")
        other.kill()
        accepted += other.stdout.read().splitlines()
    again = gistjax.Store(tmp_path / "store", engine)
    assert again.check() == []
    names = {held.name for held in again.documents()}
    assert names >= {"mill", "own 0", "own 2", *accepted}
    assert len(names) <= len(accepted) + 4  # one may be in that was not told of yet
    assert again.add("after", "The wheel turns.").pieces == 1
