"""Reading, checking and drawing of questions."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.config import DataConfig
from gistjax.data.dataset import hold_out, load_dataset, usable_examples
from gistjax.data.example import Dataset
from gistjax.data.report import DataReport
from gistjax.data.squad import TASK
from gistjax.errors import DataError

GOOD = ("The cat sat.", [("a", "Who sat?", ["cat", "The cat"]), ("b", "What did it do?", ["sat"])])


def squad_json(*paragraphs: tuple[str, list[tuple[str, str, list[str]]]], title: str = "T") -> dict:
    """A SQuAD v1.1 object of one article from `(context, [(id, question, answers)])`."""
    return {
        "version": "1.1",
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": id_,
                                "question": question,
                                "answers": [
                                    {"text": text, "answer_start": context.find(text)}
                                    for text in answers
                                ],
                            }
                            for id_, question, answers in qas
                        ],
                    }
                    for context, qas in paragraphs
                ],
            }
        ],
    }


def write_folder(folder: Path, train: object, validation: object | None = None) -> Path:
    """A data folder; without a validation set the training set stands for it."""
    for split, content in (("train", train), ("validation", validation or train)):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def load(folder: Path, train: int = -1, validation: int = -1, seed: int = 0) -> Dataset:
    return load_dataset(
        DataConfig(
            path=str(folder),
            train_examples=train,
            validation_examples=validation,
            max_dropped=1.0,
        ),
        seed,
    )


def test_reads_a_folder(tmp_path):
    squad = load(write_folder(tmp_path, squad_json(GOOD, title="Cats")))
    assert sorted(example.id for example in squad.train) == ["a", "b"]
    first = next(example for example in squad.train if example.id == "a")
    assert (first.title, first.context, first.question) == ("Cats", "The cat sat.", "Who sat?")
    assert first.answers == ("cat", "The cat")
    assert squad.train_articles == {"Cats": ("The cat sat.",)}
    assert str(squad.report) == "all rows are usable"


def test_reading_writes_nothing(tmp_path):
    folder = write_folder(tmp_path, squad_json(GOOD))
    before = sorted(os.listdir(folder))
    folder.chmod(0o500)
    try:
        load(folder)
        assert sorted(os.listdir(folder)) == before
    finally:
        folder.chmod(0o700)


def test_context_id_tells_paragraphs_apart(sample):
    by_id = {}
    for example in sample.train:
        by_id.setdefault(example.context_id, set()).add(example.context)
    assert all(len(contexts) == 1 for contexts in by_id.values())
    assert len(by_id) == len({example.context for example in sample.train}) == 30


def test_the_same_paragraph_twice_is_one_context(tmp_path):
    twice = squad_json(GOOD, ("The cat sat.", [("c", "Who?", ["cat"])]))
    squad = load(write_folder(tmp_path, twice))
    assert len({example.context_id for example in squad.train}) == 1
    assert squad.train_articles == {"T": ("The cat sat.",)}


@pytest.mark.parametrize(
    ("break_row", "reason"),
    [
        (lambda p, q: q.pop("id"), "no id"),
        (lambda p, q: q.pop("question"), "no question"),
        (lambda p, q: q.pop("answers"), "no answers"),
        (lambda p, q: p.pop("context"), "no context"),
        (lambda p, q: p.update(context=" \n"), "context is empty or not valid Unicode"),
        (lambda p, q: p.update(context=7), "context is not text"),
        (lambda p, q: q.update(id=7), "id is not text"),
        (lambda p, q: q.update(question="  "), "question is empty or not valid Unicode"),
        (lambda p, q: q.update(question="\ud800?"), "question is empty or not valid Unicode"),
        (lambda p, q: q.update(answers=[]), "no answers"),
        (lambda p, q: q.update(answers=[{"text": ""}]), "no answers"),
        (lambda p, q: q.update(answers=[{"text": 3}]), "answers are not a list of texts"),
        (lambda p, q: q.update(answers="cat"), "answers are not a list of texts"),
        (lambda p, q: q.update(answers=[{"text": "dog"}]), "no answer is in the context"),
        (lambda p, q: q.update(id="z"), "duplicate id"),
        (lambda p, q: p.update(qas=[7]), "not an object"),
        (lambda p, q: p.update(qas=None), "not an object"),
    ],
)
def test_malformed_rows_are_skipped_and_counted(tmp_path, break_row, reason):
    content = squad_json(
        ("A dog ran.", [("z", "Who ran?", ["dog"])]), ("The cat sat.", [("a", "Who?", ["cat"])])
    )
    paragraph = content["data"][0]["paragraphs"][1]
    break_row(paragraph, paragraph["qas"][0])
    squad = load(write_folder(tmp_path, content))
    assert [example.id for example in squad.train] == ["z"]
    assert squad.report.counts[f"train: skipped, {reason}"] == 1
    assert f"skipped, {reason}: 1" in str(squad.report)


def test_too_many_bad_rows_stop_a_run(tmp_path):
    bad = {"id": "x"}
    content = squad_json(GOOD)
    content["data"][0]["paragraphs"][0]["qas"].append(bad)
    folder = write_folder(tmp_path, content)
    for most in (1 / 3, 1.0):
        assert len(load_dataset(DataConfig(path=str(folder), max_dropped=most), 0).train) == 2
    with pytest.raises(DataError, match=r"1 of 3 rows of .*train.json .*max_dropped=0.34") as error:
        load_dataset(DataConfig(path=str(folder), max_dropped=0.33), 0)
    assert "train: skipped, no question: 1 (e.g. x)" in str(error.value)


def test_a_gold_that_is_not_in_the_context_is_left_out(tmp_path):
    squad = load(
        write_folder(tmp_path, squad_json(("The cat sat.", [("a", "Who?", ["", "dog", "cat"])])))
    )
    assert squad.train[0].answers == ("cat",)
    assert squad.report.counts["train: gold answers that are not in the context left out"] == 1


def test_every_question_is_scored_against_every_gold(tmp_path):
    context = "Flight 1 of the United States began in 1903."
    questions = [
        ("a", "Of which country?", ["USA", " United States\n", "U.S."]),
        ("b", "Whose?", ["American"]),
        ("c", "Who flew?", []),
        ("d", "Why?", [" "]),
        ("a", "When?", ["1903"]),
        ("a#2", "When did it begin?", ["in 1903"]),
    ]
    squad = load(write_folder(tmp_path, squad_json((context, questions))))
    assert {e.id: e.answers for e in squad.validation} == {
        "a": ("USA", "United States", "U.S."),
        "b": ("American",),
        "c": (),
        "d": (),
        "a#2": ("1903",),
        "a#2#2": ("in 1903",),
    }
    by_id = {e.id: e for e in squad.validation}
    assert by_id["a"].looked_up == "United States" and by_id["b"].looked_up == "American"
    assert by_id["c"].looked_up == ""
    assert {e.id: e.answers for e in squad.train} == {
        "a": ("United States",),
        "a#2": ("in 1903",),
    }
    assert squad.report.counts == {
        "train: skipped, no answer is in the context": 1,
        "train: skipped, no answers": 2,
        "train: skipped, duplicate id": 1,
        "train: gold answers that are not in the context left out": 1,
        "validation: gold answers without text left out": 1,
        "validation: ids that occur again, numbered": 2,
        "validation: no answer is in the context, still scored": 1,
        "validation: no answers, still scored": 2,
    }


def test_held_out_questions_are_all_scored_and_the_others_trained_on_where_they_can(tmp_path):
    paragraphs = [
        (f"The cat {n} sat.", [(f"{n}", "Who?", ["the dog", "cat"]), (f"{n}-", "Why?", ["so"])])
        for n in range(10)
    ]
    write_folder(tmp_path, squad_json(*paragraphs))
    data = DataConfig(path=str(tmp_path), validation_examples=-1, holdout=0.3, max_dropped=0.5)
    squad = load_dataset(data, 0)
    assert sorted(map(len, (squad.train, squad.validation))) == [6, 7]
    assert {e.answers for e in squad.validation} == {("the dog", "cat"), ("so",)}
    assert {e.answers for e in squad.train} == {("cat",)}
    assert squad.report.counts["train: skipped, no answer is in the context"] == 7
    with pytest.raises(DataError, match="7 of 14 rows"):
        load_dataset(replace(data, max_dropped=0.4), 0)


@pytest.mark.parametrize("questions", [[("a", "Who?", [])], [("a", "Who?", ["\ud800"])]])
def test_a_set_without_any_gold_answer_is_refused(tmp_path, questions):
    write_folder(tmp_path, squad_json(GOOD), squad_json(("The cat sat.", questions)))
    with pytest.raises(DataError, match="nothing to evaluate on"):
        load(tmp_path)


def test_report_keeps_three_ids():
    report = DataReport()
    for i in range(9):
        report.count("odd", f"q{i}")
    assert str(report + DataReport()) == "odd: 9 (e.g. q0, q1, q2)"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["title", "paragraphs", "context", "qas", "id", "question", "answers", "text"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(articles=st.lists(JSON, max_size=3))
def test_any_json_is_read_or_refused(tmp_path_factory, articles):
    content = squad_json(GOOD)
    content["data"] += articles
    folder = write_folder(tmp_path_factory.mktemp("fuzz"), content)
    squad = load(folder)
    assert {"a", "b"} <= {example.id for example in squad.train}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        JSON
        | st.fixed_dictionaries(
            {k: JSON for k in ("id", "title", "context", "question", "answers")}
        )
    )
)
def test_any_row_is_counted_or_usable(rows):
    report = DataReport()
    examples, dropped = usable_examples(rows, "train", report, TASK, "answer")
    skipped = sum(n for reason, n in report.counts.items() if "skipped" in reason)
    assert skipped == dropped and len(examples) + dropped == len(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no train\.json, no train\.jsonl, .* and no train-v1\.1\.json"),
        ('{"data": [', "cannot be read as JSON"),
        ("[1, 2]", "not in SQuAD v1.1 format"),
        ('{"rows": []}', "not in SQuAD v1.1 format"),
        ('{"data": []}', "no usable question.*(?s:.)It has no rows at all"),
        ('{"data": [{"title": "T"}]}', "no usable question"),
        (b"\xff\xfe\x00", r"train\.json is not UTF-8 text .*convert it first \(iconv"),
        (b'{"data": "\xe9"}', r"train\.json is not UTF-8 text .*convert it first \(iconv"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "train.json").write_bytes(content)
    elif content is not None:
        (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path)
    assert "train.json" in str(error.value)


def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path, monkeypatch):
    import datasets

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"Couldn't reach the hub\..*--config\.data\.path=FOLDER"):
        load_dataset(DataConfig(name="someone/squad"), 0)


def test_hub_rows_are_read_like_files(monkeypatch):
    import datasets

    row = {
        "id": "a",
        "title": "T",
        "context": "The cat sat.",
        "question": "Who?",
        "answers": {"text": ["cat"], "answer_start": [4]},
    }
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list([row])
    )
    squad = load_dataset(DataConfig(), 0)
    assert squad.train[0].answers == ("cat",)
    assert "10000 questions asked for, all 1 there are used" in str(squad.report)


def test_draw_depends_on_seed_only(sample):
    def draw(n: int, seed: int) -> list[str]:
        data = DataConfig(path="sample", train_examples=n, validation_examples=0)
        return [example.id for example in load_dataset(data, seed).train]

    assert draw(20, 1) == draw(20, 1)
    assert draw(20, 1) == draw(60, 1)[:20]  # a smaller draw is the beginning of a larger one
    assert draw(20, 1) != draw(20, 2)
    assert sorted(draw(-1, 1)) == sorted(example.id for example in sample.train)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_sample_is_official_format_with_exact_spans(split):
    import gistjax.data

    file = Path(gistjax.data.__file__).parent / "sample" / f"{split}.json"
    for article in json.loads(file.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                for answer in question["answers"]:
                    start, text = answer["answer_start"], answer["text"]
                    assert paragraph["context"][start : start + len(text)] == text
    assert 45 <= len(paragraph["context"].split()) <= 150


def test_sample_splits_share_nothing(sample):
    assert (len(sample.train), len(sample.validation)) == (150, 50)
    assert not {e.title for e in sample.train} & {e.title for e in sample.validation}
    assert str(sample.report) == "all rows are usable"


def test_real_set(squad_folder):
    squad = load(squad_folder)
    assert (len(squad.train), len(squad.validation)) == (87_406, 6_936)
    assert sum(map(len, squad.train_articles.values())) == 18_867


def test_held_out_paragraphs_are_not_trained_on_and_the_same_for_every_seed():
    def drawn(seed: int, holdout: float) -> Dataset:
        data = DataConfig(path="sample", train_examples=-1, validation_examples=-1, holdout=holdout)
        return load_dataset(data, seed)

    whole, parts = drawn(0, 0.0), drawn(0, 0.2)
    train, held = ({e.context_id for e in part} for part in (parts.train, parts.validation))
    assert not train & held
    assert train | held == {e.context_id for e in whole.train}
    assert len(held) == round(0.2 * len(train | held))
    assert held == {e.context_id for e in drawn(1, 0.2).validation}
    paragraphs = {p for ps in parts.train_articles.values() for p in ps}
    assert not paragraphs & {e.context for e in parts.validation}, "nor filled up with"


@pytest.mark.parametrize("share", [1e-6, 1 - 1e-6])
def test_holding_out_nothing_or_all_is_refused(sample: Dataset, share: float):
    with pytest.raises(DataError, match="holdout"):
        hold_out(sample.train, share)


def test_where_no_question_is_asked_for_no_file_is_opened():
    data = DataConfig(path="/nowhere", train_examples=0, validation_examples=0)
    squad = load_dataset(data, 0)
    assert squad.train == squad.validation == []


def test_a_split_of_no_rows_is_not_read(tmp_path):
    (tmp_path / "validation.json").write_text(json.dumps(squad_json(GOOD)))
    assert len(load(tmp_path, train=0).validation) == 2
    with pytest.raises(DataError, match="has no train.json, no train.jsonl, "):
        load(tmp_path, train=1)


def test_questions_to_answers(tmp_path):
    folder = write_folder(tmp_path, squad_json(GOOD))
    data = DataConfig(path=str(folder), task="question")
    for examples in (load_dataset(data, 0).train, load_dataset(data, 0).validation):
        first = next(example for example in examples if example.id == "a")
        assert first.question == "Which question is answered by: cat"
        assert first.answers == ("Who sat?",) and first.context == "The cat sat."
