"""Questions on plain text: places, what is written for them, and which are kept."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax import questions
from gistjax.config import CompressionConfig, DataConfig
from gistjax.data import squad
from gistjax.data.dataset import load_dataset
from gistjax.data.example import Example
from gistjax.data.question_writing import swap
from gistjax.errors import ConfigError, GistjaxError
from gistjax.questions import (
    LONGEST,
    LONGEST_PLACE,
    SHORTEST,
    Prediction,
    ask,
    check_output,
    find_places,
    keep,
)
from gistjax.runtime import cli

SENTENCE = "In March 1812 Ada Holm built the old mill of Harrow for 300 pounds, with her brothers. "


def paragraphs(n: int) -> str:
    return "\n\n".join(f"Part {i}. " + SENTENCE * 5 for i in range(n))


@given(st.integers(0, 9), st.integers(1, 8), st.integers(0, 99))
def test_places_stand_in_their_contexts(n, places, seed):
    found = list(find_places([paragraphs(n)] * 2, 5, places, seed))
    assert found == list(find_places([paragraphs(n)] * 2, 5, places, seed))
    assert n > 0 or not found
    by_context = {}
    for example in found:
        assert example.question in example.context and len(example.question) <= LONGEST_PLACE
        assert example.answers == (example.question,)
        by_context.setdefault(example.context_id, []).append(example)
    assert len(by_context) <= 5
    for examples in by_context.values():
        [context] = {example.context for example in examples}
        assert SHORTEST <= len(context) <= LONGEST and context in paragraphs(n)
        assert len({example.question for example in examples}) == len(examples) <= places
    assert len({example.id for example in found}) == len(found)


def test_kinds_of_places():
    text = paragraphs(3)
    found = {example.question for example in find_places([text] * 40, 40, 8, 0)}
    assert {"Ada Holm", "Harrow", "1812", "300"} <= found
    assert "In" not in found and "Part" not in found  # the first word of a sentence is no name


def test_nothing_in_a_short_or_a_dense_text():
    assert not list(find_places(["Too short.", "x" * (LONGEST + 1)], 9, 3, 0))


def qa(id_: str, question: str, answer: str) -> dict:
    return {"id": id_, "question": question, "answers": [{"text": answer}]}


PLACES = [
    {
        "context": "Ada Holm built it.",
        "qas": [qa("a", "Ada", "Ada"), qa("b", "it", "it"), qa("c", "Holm", "Holm")],
    },
    {"context": "Nobody.", "qas": [qa("d", "Nobody", "Nobody")]},
]


def predicted(**texts: str) -> dict[str, Prediction]:
    return {id_: Prediction("?", text, 0.0) for id_, text in texts.items()}


def examples(paragraphs: list[dict]) -> list[Example]:
    return [
        Example(q["id"], "text", p["context"], q["question"], (q["answers"][0]["text"],), i)
        for i, p in enumerate(paragraphs)
        for q in p["qas"]
    ]


def test_ask_leaves_out_what_is_empty_or_said_twice():
    asked = list(ask(examples(PLACES), predicted(a="Who built it?", b="", c="Who built it?")))
    kept = {"context": "Ada Holm built it.", "qas": [qa("a", "Who built it?", "Ada")]}
    assert asked == examples([kept])


def test_keep():
    answered = predicted(a="Ada Holm", b="ada", c="Ada Holmes", d="Somebody")
    f1 = {"a": 0.67, "b": 0.2, "c": 0.5, "d": 0.0}
    kept = keep(examples(PLACES), {i: p._replace(f1=f1[i]) for i, p in answered.items()}, 0.5)
    # the answer where the context has it, else the place
    assert [(e.id, e.answers[0]) for e in kept] == [("a", "Ada Holm"), ("c", "Holm")]


def run(*words):
    command = [sys.executable, "-m", "gistjax.questions", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def call(*words):
    """The command in this process; what it refuses raises."""
    argv, values = ["questions", *map(str, words)], cli._flags(questions.define_flags)
    config, rest = cli._parse(argv, lambda argv: CompressionConfig(), values)
    questions.main(config, values, rest)


def row(id_: str, question: str, prediction: str, f1: float = 0.0) -> dict:
    return {"id": id_, "question": question, "prediction": prediction, "f1": f1}


@pytest.mark.slow
def test_commands(tmp_path):
    article = {"title": "t", "paragraphs": paragraphs(12).split("\n\n")}
    (tmp_path / "text.jsonl").write_text(json.dumps(article))
    places, asked, out = (tmp_path / name for name in ("places", "asked", "questions"))
    done = run("places", f"--config.text.path={tmp_path}", "--to", places, "--contexts", 3)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["contexts"] == 3

    # the folder can be answered: by a writer, then by the full-context model
    data = DataConfig(path=str(places), train_examples=0, validation_examples=-1)
    to_answer = load_dataset(data, 0).validation
    assert len(to_answer) == found["questions"] and not load_dataset(data, 0).train
    written = [row(e.id, swap(e).question, f"What of {e.id}?") for e in to_answer]
    (tmp_path / "written.json").write_text(json.dumps(written))
    done = run("keep", "--folder", places, "--predictions", tmp_path / "written.json", "--to", out)
    assert done.returncode == 2 and "not of this folder" in done.stderr
    done = run("ask", "--folder", places, "--predictions", tmp_path / "written.json", "--to", asked)
    assert done.returncode == 0, done.stderr
    answered = [row(e.id, f"What of {e.id}?", e.answers[0], i % 2) for i, e in enumerate(to_answer)]
    for half in (0, 1):
        (tmp_path / f"{half}.json").write_text(json.dumps(answered[half::2]))
    files = f"{tmp_path}/0.json,{tmp_path}/1.json"
    done = run("keep", "--folder", asked, "--predictions", files, "--to", out)
    assert done.returncode == 0, done.stderr

    # what it wrote it may write over, and nothing else
    check_output(out, "train")
    shutil.copy(Path(squad.__file__).parent / "sample/validation.json", tmp_path)
    with pytest.raises(ConfigError, match=r"its validation\.json is not of this command"):
        check_output(tmp_path, "validation")

    [article] = json.loads((out / "train.json").read_text())["data"]
    for p in article["paragraphs"]:
        for answer in (answer for q in p["qas"] for answer in q["answers"]):
            assert p["context"][answer["answer_start"] :].startswith(answer["text"])
    train = load_dataset(
        DataConfig(path=str(out), train_examples=-1, validation_examples=0), 0
    ).train
    assert sorted(e.id for e in train) == sorted(a["id"] for a in answered if a["f1"])
    assert all(e.question == f"What of {e.id}?" for e in train)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "which stage"),
        (("place", "--to", "x"), "did you mean 'places'"),
        (("places",), "--to"),
        (("places", "--to", "x"), "--config.text.path"),
        (("ask", "--folder", "x", "--to", "x"), "takes --folder FOLDER and --predictions"),
        (("places", "--config.seed=-1", "--to", "x"), "seed"),
        (("ask", "b.json", "--to", "x"), "separated by commas"),
        (("ask", "--folder", "x", "--predictions", "y", "--to", "./x"), "would be lost"),
        (("keep", "--predictions", "x", "--to", "x"), "takes --folder FOLDER and --predictions"),
        (("ask", "--folder", "no", "--predictions", "x", "--to", "x"), "--folder takes the folder"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    refused(told, *words)


def refused(told, *words):
    with pytest.raises(GistjaxError, match=re.escape(told)):
        call(*words)


PREDICTED = [row("a", "Which question is answered by: Ada", "Who?")]


@pytest.mark.parametrize(
    ("paragraphs", "predictions", "told"),
    [
        (PLACES, None, "--predictions takes what"),
        (PLACES, [{"id": "a"}], "--predictions takes what"),
        (PLACES, [{**PREDICTED[0], "prediction": None}], "--predictions takes what"),
        (PLACES, [{**PREDICTED[0], "f1": "x"}], "--predictions takes what"),
        (PLACES, [{**PREDICTED[0], "f1": 7}], "no score"),
        (PLACES, [{**PREDICTED[0], "id": ["a"]}], "--predictions takes what"),
        (PLACES, [{**PREDICTED[0], "prediction": "who \ud800?"}], "--predictions takes what"),
        (PLACES, [], "none of its questions"),
        (PLACES, [row("z", "?", "Who?")], "none of its questions"),
        (PLACES, [row("a", "Who built it?", "Ada")], "not of this folder"),
        (["text"], PREDICTED, "--folder takes the folder"),
        ([{"context": "Ada."}], PREDICTED, "--folder takes the folder"),
        (
            [{"context": "Ada.", "qas": [{"id": "a", "question": "?", "answers": []}]}],
            PREDICTED,
            "--folder takes the",
        ),
    ],
)
def test_files_that_are_something_else(tmp_path, paragraphs, predictions, told):
    content = {"data": [{"title": "text", "paragraphs": paragraphs}]}
    (tmp_path / "validation.json").write_text(json.dumps(content))
    file = tmp_path / "predictions.json"
    if predictions is not None:
        file.write_text(json.dumps(predictions))
    refused(told, "ask", "--folder", tmp_path, "--predictions", file, "--to", tmp_path / "to")


def test_what_cannot_be_written(tmp_path):
    content = {"data": [{"title": "text", "paragraphs": PLACES}]}
    (tmp_path / "validation.json").write_text(json.dumps(content))
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(PREDICTED))
    refused("cannot be made", "ask", "--folder", tmp_path, "--predictions", file, "--to", file)


def test_what_was_not_answered_is_said(tmp_path, caplog):
    content = {"data": [{"title": "text", "paragraphs": PLACES}]}
    (tmp_path / "validation.json").write_text(json.dumps(content))
    (tmp_path / "p.json").write_text(json.dumps(PREDICTED))
    words = ("--folder", tmp_path, "--predictions", tmp_path / "p.json", "--to", tmp_path / "to")
    with caplog.at_level("INFO"):
        call("ask", *words)
    assert "3 of 4 questions have no prediction" in caplog.text
