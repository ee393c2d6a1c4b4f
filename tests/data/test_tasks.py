"""The tasks of the registry: every form of their data becomes the same questions."""

import dataclasses
import gzip
import json

import pytest

from gistjax.config import TASKS, DataConfig
from gistjax.data import gsm8k, gsm8k_examples
from gistjax.data.dataset import load_dataset
from gistjax.data.gsm8k_numbers import number_questions
from gistjax.data.squad_v2 import ask_elsewhere
from gistjax.data.tasks import load_task, written_tokens
from gistjax.errors import ConfigError, DataError
from gistjax.evaluation.metrics import METRICS
from tests.helpers.runs import TRAINED

HOTPOT = {
    "question": "Do A and B have a mill?",
    "answer": "yes",
    "type": "comparison",
    "level": "hard",
}
PARAGRAPHS = [("A", ["A has a mill.", " It is old."]), ("C", ["C is far."]), ("B", ["B has one."])]
OFFICIAL = {
    **HOTPOT,
    "_id": "h",
    "supporting_facts": [["A", 0], ["B", 0]],
    "context": [[title, sentences] for title, sentences in PARAGRAPHS],
}
HUB = {
    **HOTPOT,
    "id": "h",
    "supporting_facts": {"title": ["A", "B"], "sent_id": [0, 0]},
    "context": {"title": [t for t, _ in PARAGRAPHS], "sentences": [s for _, s in PARAGRAPHS]},
}
LINE = {
    **HOTPOT,
    "id": "h",
    "supporting_facts": None,
    "paragraphs": [
        {"title": t, "text": "".join(s), "supporting": t in "AB"} for t, s in PARAGRAPHS
    ],
}
SOLUTION = "He has 2+3=<<2+3=5>>5.\nThat is $<<5*2=10>>10."
PROBLEM = "Tom has 2 cats, i.e. pets. Ann gives him 3 more. How much are they at $2 each?"
STORY = {
    "context": "A king sat.\nHe slept.",
    "sections": [{"section": "1", "text": "A king sat."}, {"section": "2", "text": "He slept."}],
    "questions": [
        {"id": "s-1", "question": "Who sat?", "answers": ["a king", "king"], "sections": ["1"]}
    ],
}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(folder, task, **changes):
    data = DataConfig(
        task=task, path=str(folder), train_examples=0, validation_examples=-1, context="paragraph"
    )
    return load_dataset(dataclasses.replace(data, **changes), 0)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_prompt_a_metric_and_a_module(name):
    task = load_task(name)
    assert task.metric in METRICS and task.instruction
    config = TRAINED.replace(data=dataclasses.replace(TRAINED.data, task=name))
    assert written_tokens(config) >= (task.answer_tokens or 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hotpot_dev_distractor_v1.json", json.dumps([OFFICIAL])),
        ("validation.json", json.dumps([OFFICIAL])),
        ("validation.jsonl", lines([HUB])),
        ("validation.jsonl.gz", lines([LINE])),
    ],
)
def test_every_form_of_hotpotqa_is_the_same_question(tmp_path, name, content):
    write = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(write(content.encode()))
    [example] = load(tmp_path, "hotpotqa").validation
    assert (example.id, example.question, example.answers) == ("h", HOTPOT["question"], ("yes",))
    assert example.context == "A: A has a mill. It is old.\n\nC: C is far.\n\nB: B has one."
    [supporting] = load(tmp_path, "hotpotqa_supporting").validation
    assert supporting.context == "A: A has a mill. It is old.\n\nB: B has one."


def test_yes_and_no_are_trained_on_though_they_do_not_stand_in_the_text(tmp_path):
    asked = [{**LINE, "id": answer, "answer": answer} for answer in ("yes", "no", "C", "maybe")]
    (tmp_path / "train.jsonl").write_text(lines(asked))
    changes = {"train_examples": -1, "validation_examples": 0, "max_dropped": 1.0}
    dataset = load(tmp_path, "hotpotqa", **changes)
    assert {example.answers for example in dataset.train} == {("yes",), ("no",), ("C",)}
    assert dataset.report.counts == {"train: skipped, no answer is in the context": 1}


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("hotpotqa", {**OFFICIAL, "context": [["A"]]}, "no context"),
        ("hotpotqa", {**OFFICIAL, "context": 7}, "no context"),
        ("hotpotqa", {**LINE, "paragraphs": [{"title": "A"}]}, "no context"),
        ("hotpotqa", {**OFFICIAL, "answer": None}, "no answers"),
        ("hotpotqa", {**OFFICIAL, "answer": 3}, "answers are not a list of texts"),
        ("hotpotqa_supporting", {**OFFICIAL, "supporting_facts": [7]}, "context is empty or not"),
        (
            "hotpotqa_supporting",
            {**OFFICIAL, "supporting_facts": [["A", 0], ["Z", 0]]},
            "no context",
        ),
        ("gsm8k", {"question": 7, "answer": "#### 1"}, "no context"),
        ("gsm8k", {"question": PROBLEM}, "no answers"),
        ("gsm8k", [PROBLEM], "not an object"),
        ("gsm8k_numbers", {"question": None, "answer": "#### 1"}, "no context"),
        ("fairytaleqa", {"context": "A king."}, "not an object"),
        ("fairytaleqa", {**STORY, "questions": [{"id": "s", "question": "?"}]}, "no answers"),
        ("fairytaleqa_sections", {**STORY, "sections": [7]}, "no context"),
        ("nq", {"context": "A.", "question": "B?", "answers": "C"}, "answers are not a list"),
        ("jsonl", "cut short", "not an object"),
    ],
)
def test_malformed_rows_are_counted(tmp_path, task, row, reason):
    good = {
        "hotpotqa": [OFFICIAL],
        "gsm8k": [{"question": PROBLEM, "answer": f"{SOLUTION}\n#### 10"}],
        "fairytaleqa": [STORY],
    }.get(task.partition("_")[0], [{"context": "A.", "question": "B?", "answers": ["A"]}])
    (tmp_path / "validation.jsonl").write_text(lines([*good, row]))
    counts = load(tmp_path, task, max_dropped=0.9).report.counts
    assert [reason in found for found in counts] == [True] and counts.total() == 1
    with pytest.raises(DataError, match="cannot be used"):
        load(tmp_path, task)


@pytest.mark.parametrize(
    ("problem", "body", "question"),
    [
        (
            PROBLEM,
            "Tom has 2 cats, i.e. pets. Ann gives him 3 more.",
            "How much are they at $2 each?",
        ),
        ("If 2 and 3 are added, what is it?", "If 2 and 3 are added, what is it?", gsm8k.WHOLE),
        ('He said "Go!" It cost $1.50. How much?', 'He said "Go!" It cost $1.50.', "How much?"),
    ],
)
def test_the_last_sentence_of_a_problem_is_asked(problem, body, question):
    assert gsm8k.body_and_question(problem) == (body, question)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("test.jsonl", {"question": PROBLEM, "answer": f"{SOLUTION}\n#### 10"}),
        ("validation.jsonl", {"question": PROBLEM, "solution": SOLUTION, "answer": "10"}),
    ],
)
def test_every_form_of_gsm8k_is_the_same_solution(tmp_path, name, row):
    (tmp_path / name).write_text(lines([row]))
    [example] = load(tmp_path, "gsm8k").validation
    assert example.answers == ("He has 2+3=5.\nThat is $10.\n#### 10",)
    [first, _] = sorted(load(tmp_path, "gsm8k_numbers").validation, key=lambda e: e.id)
    assert (first.question, first.answers) == ("Tom has what cats, i.e?", ("2",))


def test_worked_examples_are_one_context_and_not_asked(tmp_path):
    problems = [
        {"question": f"{n} apples. Two more?", "answer": f"It is {n + 2}.\n#### {n + 2}"}
        for n in range(gsm8k_examples.WORKED + 2)
    ]
    (tmp_path / "train.jsonl").write_text(lines(problems))
    (tmp_path / "test.jsonl").write_text(lines([problems[0], {**problems[1], "question": "New?"}]))
    changes = {"train_examples": -1, "question_buckets": (512,)}
    dataset = load(tmp_path, "gsm8k_examples", **changes)
    assert len(dataset.train) == 2 and [e.question for e in dataset.validation] == ["New?"]
    [context] = {example.context for example in (*dataset.train, *dataset.validation)}
    assert context.startswith(
        "Problem: 0 apples. Two more?\nSolution: It is 2.\n#### 2\n\nProblem: 1"
    )
    (tmp_path / "train.jsonl").write_text(lines(problems[:2]))
    with pytest.raises(DataError, match="has 2 whole problems"):
        load(tmp_path, "gsm8k_examples")


def test_numbers_that_stand_once_are_asked_for():
    body = "Ann has 1,200 figs and 3 dogs. He paid $4.50 on 1/2 day. Bob has 3 cats and B2."
    assert list(number_questions(body)) == [
        ("Ann has what figs and 3 dogs?", "1,200"),
        ("He paid $what on 1/2 day?", "4.50"),
    ]


def test_a_story_is_whole_or_the_sections_of_a_question(tmp_path):
    (tmp_path / "validation.jsonl").write_text(lines([STORY]))
    [whole] = load(tmp_path, "fairytaleqa").validation
    [section] = load(tmp_path, "fairytaleqa_sections").validation
    assert (whole.context, section.context) == (STORY["context"], "A king sat.")
    assert whole.answers == section.answers == ("a king", "king")


@pytest.mark.parametrize(
    ("task", "name", "row", "answers"),
    [
        (
            "fairytaleqa_sections",
            "WorkInTheDark/FairytaleQA",
            {"story_section": "A king sat.", "question": "Who?", "answer1": "king", "answer2": ""},
            ("king",),
        ),
        ("hotpotqa", "hotpotqa/hotpot_qa distractor", HUB, ("yes",)),
        ("gsm8k", "openai/gsm8k main", {"question": PROBLEM, "answer": "#### 1"}, ("#### 1",)),
    ],
)
def test_the_hub_of_a_task(monkeypatch, task, name, row, answers):
    import datasets

    asked = []

    def found(*names, split):
        asked.append((" ".join(names), split))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", found)
    [example] = load("", task).validation
    assert example.answers == answers
    load("", task, name="other/name:part")
    split = "test" if task == "gsm8k" else "validation"
    assert asked == [(name, split), ("other/name part", "validation")]


@pytest.mark.parametrize("task", ["nq", "fairytaleqa"])
def test_what_the_hub_has_not_is_said(task):
    with pytest.raises(DataError, match=r"--config\.data\.path=FOLDER"):
        load("", task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "nq", "train_examples": 5}, "'nq' is for evaluation only: train on another"),
        ({"task": "nq", "holdout": 0.5}, "'nq' is for evaluation only, so none"),
        ({"task": "gsm8k", "train_examples": 5}, "'gsm8k' have up to 320 tokens, .* 64, holds"),
    ],
)
def test_training_that_a_task_does_not_allow_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **changes)


def squad_rows(n):
    return [
        {
            "id": f"q{i}",
            "title": f"T{i % 2}",
            "context": f"Paragraph {i} has word{i}.",
            "question": f"Which word has paragraph {i}?",
            "answers": [f"word{i}"],
        }
        for i in range(n)
    ]


def test_questions_are_asked_of_other_paragraphs_of_their_article(tmp_path):
    rows = squad_rows(200)
    made = list(ask_elsewhere([*rows, None, {"id": 7}]))
    assert 80 < len(made) < 120 and made == list(ask_elsewhere(rows))
    by_id = {row["id"]: row for row in rows}
    for row in made:
        own = by_id[row["id"].removesuffix("#elsewhere")]
        assert row["question"] == own["question"] and row["context"] != own["context"]
        assert row["title"] == own["title"] and own["answers"][0] not in row["context"]
        assert row["answers"] == []
    (tmp_path / "train.jsonl").write_text(lines(rows))
    changes = {"train_examples": -1, "validation_examples": 0}
    train = load(tmp_path, "squad_v2", **changes).train
    assert sum(e.answers == ("not in the text",) for e in train) == len(made)
    assert len(train) == len(made) + 200
    with pytest.raises(DataError, match=r"--config\.data\.context=paragraph"):
        load(tmp_path, "squad_v2", context="filled", **changes)


def test_unanswered_questions_of_a_file_are_trained_on_and_no_others_made(tmp_path):
    rows = squad_rows(20)
    rows[3]["answers"] = {"text": [], "answer_start": []}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(lines(rows))
    dataset = load(tmp_path, "squad_v2", context="filled", train_examples=-1)
    assert len(dataset.train) == len(dataset.validation) == 20
    for split, answers in ((dataset.train, ("not in the text",)), (dataset.validation, ())):
        assert {e.answers for e in split if e.id == "q3"} == {answers}
