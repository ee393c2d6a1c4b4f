"""The short form of the trials of bad and hostile inputs: `python -m tests.faults.inputs` makes them all."""

from . import commands


def test_bad_command_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = commands.all_cases(tmp_path)
    assert len(cases) >= 200
    assert [failure for case in cases if (failure := commands.refuse(case))] == []
