"""What keeping documents costs, measured on a tiny random base: the programs and their sums."""

import json

import pytest
from absl import flags

from gistjax.errors import DataError
from gistjax.runtime import cli
from launch import break_even, store_size
from tests.helpers.runs import KNORM, write_run

WORDS = ("mill", "pump", "harbour", "wheel")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Runs a program on four articles of a paragraph each; returns what it prints."""
    file, run = tmp_path / "squad.json", write_run(tmp_path / "run", KNORM)
    asked = [{"question": f"Who built it {i}?", "answers": [{"text": "Dursel"}]} for i in range(2)]
    paragraphs = [{"context": f"The {word} was built by Dursel", "qas": asked} for word in WORDS]
    file.write_text(json.dumps({"data": [{"paragraphs": [one]} for one in paragraphs]}))

    def measure(program, *words):
        values, printed = flags.FlagValues(), []
        program.define_flags(values)
        values(["program", f"--run={run}", f"--data={file}", *words])
        monkeypatch.setattr(cli, "print_result", printed.append)
        program.main(KNORM, values)
        return printed[0]

    return measure


def test_the_sums_of_when_it_pays(measured):
    found = measured(break_even, "--documents=3", "--bits=4")
    kept, cached = found["ways"]["compressed"], found["ways"]["whole cache"]
    assert (found["documents"], found["questions"]) == (3, 6)
    assert kept["bytes"] < cached["bytes"]
    assert found["gib"]["compressed"]["10000"] == pytest.approx(
        1e4 * kept["bytes"] / 2**30, abs=1e-4
    )
    anew = cached["read_s"] + cached["question_s"]
    assert found["question_read_anew_s"] == pytest.approx(anew, abs=1e-4)
    if found["pays_from_questions"]:
        expected = kept["read_s"] / (anew - kept["question_s"])
        assert found["pays_from_questions"] == pytest.approx(expected, rel=0.05, abs=0.02)
    low, high = found["its_interval"]
    assert low <= found["f1_difference"] <= high
    with pytest.raises(DataError, match="raise --tokens"):
        measured(break_even, "--tokens=2")


def test_each_size_is_asked_from_a_store_with_nothing_open(measured, monkeypatch):
    opened, ask = [], store_size.ask
    monkeypatch.setattr(
        store_size,
        "ask",
        lambda store, questions: opened.append(len(store._open)) or ask(store, questions),
    )
    found = measured(store_size, "--sizes=4,2", "--questions=2")
    assert list(found["sizes"]) == ["2", "4"] and opened == [0, 0]
    assert all(of["answer_s"] > 0 and of["find_s"] > 0 for of in found["sizes"].values())
    with pytest.raises(DataError, match="has 4 paragraphs"):
        measured(store_size, "--sizes=5")
