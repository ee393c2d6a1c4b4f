"""The short form of the trials of bad and hostile inputs: `python -m tests.faults.inputs` makes them all."""

from . import commands, rows


def test_bad_command_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = commands.all_cases(tmp_path)
    assert len(cases) >= 200
    assert [failure for case in cases if (failure := commands.refuse(case))] == []


def test_bad_rows(tmp_path):
    assert rows.classes() >= 30
    for fuzz in (rows.fuzz_questions, rows.fuzz_lines):
        folder = tmp_path / fuzz.__name__
        folder.mkdir()
        assert fuzz(0, folder, 300) == []
