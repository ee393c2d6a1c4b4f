"""The short form of the trials of bad and hostile inputs: `python -m tests.stress.inputs` makes
them all.
"""

import pytest

from . import commands, inputs, rows, scores


@pytest.mark.slow
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


@pytest.mark.slow
def test_hostile_files(tmp_path):
    found = inputs.hostile(tmp_path, fuzzed=40)
    assert found["failed"] == [] and found["cases"] >= 40


@pytest.mark.slow
def test_adapter_in_peft(tmp_path):
    pytest.importorskip("peft")
    from . import peft

    found = peft.tiny(tmp_path)
    assert found["largest_difference"] <= peft.TOLERANCE
    assert found["equal_answers"] == found["prompts"] == 12


def test_scores_are_the_official_ones():
    examples = scores.questions()[:600]
    number, wrong = scores.check_scores(examples, 1)
    assert wrong == [] and number == 13 * len(examples)
    assert scores.check_torchmetrics(examples[:100], 1)[1] == []


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch_size():
    found = scores.answers_at(scores.tiny_config(), None)
    assert scores.check_batches(found) == []
    assert len(set(found[1]["answers"])) > 1  # else nothing is compared
