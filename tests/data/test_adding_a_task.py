"""The worked example of CONTRIBUTING: a task of one's own, from a JSONL file to a score.

This module is the task's module. Beside its `TASK` it takes one line in the registry.
"""

import dataclasses
import json

import pytest

from gistjax import config as configuration
from gistjax import train
from gistjax.config import DataConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.jsonl import read_jsonl
from gistjax.data.tasks import Task, load_task
from gistjax.errors import ConfigError, DataError
from gistjax.evaluate import evaluate_run
from gistjax.evaluation.metrics import METRICS, Score
from gistjax.weights.tokenizers import byte_tokenizer
from tests.helpers.runs import TRAINED


def last_word(prediction, golds):
    """Right is what ends with a gold answer's last word."""
    right = float(any(prediction.split()[-1:] == gold.split()[-1:] for gold in golds))
    return Score(f1=right, em=right)


TASK = Task(read_jsonl, instruction="Answer yes or no.", metric="last_word", answer_tokens=5)

NOTES = [
    {"context": f"Note {n}. The tap is {state}.", "question": "Is it open?", "answers": [answer]}
    for n in range(12)
    for state, answer in [("open", "yes"), ("shut", "no"), ("stuck", "nobody knows")]
]


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The task in its registry, and a folder of its data."""
    monkeypatch.setitem(configuration.TASKS, "notes", __name__)
    monkeypatch.setitem(METRICS, "last_word", last_word)
    for split, rows in (("train", NOTES), ("validation", NOTES[:4])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    return DataConfig(task="notes", path=str(tmp_path), validation_examples=-1)


def data_of(notes, **changes):
    sizes = {"context": "paragraph", "context_tokens": 64, "context_buckets": (64,)}
    return dataclasses.replace(notes, question_buckets=(128,), **sizes, **changes)


def test_rows_become_examples_of_the_task(notes):
    dataset = load_dataset(notes, seed=0)
    assert len(dataset.train) == 36 and len(dataset.validation) == 4
    first = next(e for e in dataset.validation if e.id == "validation-0")
    assert (first.question, first.answers) == ("Is it open?", ("yes",))
    assert (first.task, first.metric) == ("notes", "last_word")
    assert first.evidence == (), "the answer need not be in the context"
    assert "are usable" not in str(dataset.report), "10000 were asked for"


def test_prompt_and_lengths_are_the_tasks(notes):
    task, tokenizer = load_task("notes"), byte_tokenizer()
    prompt = task.prompt(tokenizer)
    assert "system\nAnswer yes or no.<" in tokenizer.decode(prompt.prefix_ids)
    assert prompt.sha256 != load_task("answer").prompt(tokenizer).sha256
    train_rows, validation_rows, report = encode_splits(
        load_dataset(notes, seed=0), prompt, data_of(notes), seed=0
    )
    assert {tokenizer.decode(row.answer_ids[:-1]) for row in train_rows} == {"yes", "no"}
    assert report.counts == {"train: skipped, answers too long": 12}
    assert len(validation_rows) == 4, "every question is scored"


def test_a_task_whose_module_is_missing_is_refused(monkeypatch):
    monkeypatch.setitem(configuration.TASKS, "notes", "not_there")
    with pytest.raises(ConfigError, match="task 'notes' cannot be imported.*Python finds"):
        load_task("notes")


@pytest.mark.slow
def test_a_run_trains_on_it_and_is_evaluated(notes, tmp_path):
    config = TRAINED.replace(max_steps=3, checkpoint_every=3, data=data_of(notes))
    metrics = train.run_single_ablation(config, tmp_path / "run")
    assert metrics["n_examples"] == 4 and metrics["steps"] == 3
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())
    for row in predictions:
        assert row["f1"] == last_word(row["prediction"], row["answers"]).f1
    again = evaluate_run(tmp_path / "run")
    assert again["final_f1"] == metrics["final_f1"]


def test_lines_that_are_no_rows_are_counted(notes, tmp_path):
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(
            '{"context": "cut sho\n\n[]\n{"context": "A.", "question": "B?", "answers": "C"}\n'
        )
    report = load_dataset(notes, seed=0).report
    assert report.counts == {
        "train: skipped, not JSON": 1,
        "train: skipped, not an object": 1,
        "train: skipped, answers are not a list of texts": 1,
    }
    (tmp_path / "train.jsonl").write_bytes(b'{"context": "\xff"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl is not UTF-8 text .*iconv"):
        load_dataset(notes, seed=0)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no train\.jsonl and no train\.jsonl\.gz"):
        load_dataset(notes, seed=0)


def test_mistakes_in_a_registry_are_named(monkeypatch):
    with pytest.raises(ConfigError, match="data.task cannot be 'anser'; did you mean 'answer'"):
        load_task("anser")
    monkeypatch.setitem(configuration.TASKS, "notes", "json")
    with pytest.raises(ConfigError, match="json, the module of task 'notes', defines no TASK"):
        load_task("notes")


@pytest.mark.parametrize("user", ["@QUESTION@", "@CONTEXT@", "@QUESTION@ @CONTEXT@"])
def test_a_turn_without_its_markers_is_refused(user):
    with pytest.raises(ConfigError, match="must have @CONTEXT@ and then @QUESTION@"):
        Task(read_jsonl, user=user)


def test_the_answer_task_reads_jsonl_too(tmp_path):
    row = {"context": "The cat sat.", "question": "Who sat?", "answers": ["cat", "dog"]}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    dataset = load_dataset(DataConfig(path=str(tmp_path), max_dropped=0.0), seed=0)
    assert dataset.train[0].answers == dataset.train[0].evidence == ("cat",)
