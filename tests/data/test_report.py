"""What messages about rows say: which row, what is wrong with it, and what would be right."""

import json

import pytest

from gistjax.config import DataConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.report import DataReport
from gistjax.data.text import load_articles
from gistjax.errors import DataError

GOOD = {"context": "The cat sat.", "question": "Who sat?", "answers": ["cat"]}
WRONG_KEY = {"context": "The cat sat.", "question": "Who sat?", "answer": "cat"}


def read(folder, lines, task="jsonl", **changes):
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    changes = {"train_examples": -1, "validation_examples": 0, "max_dropped": 1.0} | changes
    return load_dataset(DataConfig(path=str(folder), task=task, **changes), 0)


@pytest.mark.parametrize("task", ["jsonl", "squad"])
def test_a_broken_line_is_named_by_its_number(tmp_path, task):
    good = json.dumps(GOOD)
    found = read(tmp_path, [good, "", good, good, '{"context": "cut sho', good], task)
    assert str(found.report).splitlines()[0] == "train: skipped, not JSON: 1 (e.g. line 5)"


def test_rows_count_from_1(tmp_path):
    rows = [{**GOOD, "question": 7}, GOOD, {**GOOD, "answers": "cat", "id": "own"}, [GOOD]]
    text = str(read(tmp_path, map(json.dumps, rows)).report)
    assert "question is not text: 1 (e.g. row 1)" in text
    assert "answers are not a list of texts: 1 (e.g. own)" in text
    assert "not an object: 1 (e.g. row 4)" in text


def test_a_wrong_key_is_told_with_those_that_are_there(tmp_path):
    report = read(tmp_path, map(json.dumps, [GOOD, WRONG_KEY, WRONG_KEY])).report
    assert report.counts == {"train: skipped, no answers": 2}
    [note] = report.notes
    assert note == "train, row 2: no 'answers', but 'context', 'question', 'answer'"
    read(tmp_path, map(json.dumps, [{**GOOD, "x" * 10**6: 1}, {}, GOOD]))


def test_a_wrong_key_of_a_text_is_told_with_those_that_are_there(tmp_path):
    rows = [{"paragraphs": ["one"]}, {"title": "t", "text": "two"}, {"text": "three"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = DataReport()
    assert list(load_articles(str(tmp_path), report)) == ["one"]
    assert report.notes == ["text, a.jsonl:2: no 'paragraphs', but 'title', 'text'"]
    assert report.counts == {"text: skipped, not an article": 2}


@pytest.mark.parametrize("changes", [{}, {"max_dropped": 0.1}, {"holdout": 0.5}])
def test_answers_that_are_not_copied_are_told_with_the_tasks_that_take_them(tmp_path, changes):
    rows = [{**GOOD, "context": f"The cat {n} sat.", "answers": ["yes"]} for n in range(8)]
    rows += [GOOD] if "max_dropped" in changes else []
    lines = list(map(json.dumps, rows))
    with pytest.raises(DataError, match=r"word for word .*data\.task=jsonl.*Add a task"):
        read(tmp_path, lines, "squad", **({"max_dropped": 0.1} | changes))
    assert len(read(tmp_path, lines).train) == len(rows)


@pytest.mark.parametrize("kind", ["file", "absent", "empty"])
def test_a_folder_without_the_files_is_told_with_what_it_should_have(tmp_path, kind):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    says = {
        "file": "file is a file: ",
        "absent": "there is no folder .*absent: ",
        "empty": r"empty has no train\.jsonl and no train\.jsonl\.gz: ",
    }
    with pytest.raises(DataError, match=says[kind]):
        load_dataset(DataConfig(path=str(tmp_path / kind), task="jsonl"), 0)
