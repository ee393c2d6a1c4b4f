"""Whole articles, asked in every way, on a tiny random base."""

import dataclasses
import json

import pytest
from absl import flags

from gistjax.config import SelectConfig
from gistjax.errors import DataError
from gistjax.runtime import cli
from launch import articles
from tests.helpers.runs import SELECTED, write_run

CONFIG = SELECTED.replace(
    select=SelectConfig("knorm"),
    encoder=dataclasses.replace(SELECTED.encoder, bidirectional=True),
    data=dataclasses.replace(SELECTED.data, context_tokens=64, context_buckets=(64,)),
)


def article(title, *paragraphs):
    """An article of SQuAD's form, each of whose paragraphs has a question on its last word."""
    return {
        "title": title,
        "paragraphs": [
            {
                "context": text,
                "qas": [
                    {"question": text.rsplit(" ", 1)[0], "answers": [{"text": text.split()[-1]}]}
                ],
            }
            for text in paragraphs
        ],
    }


ARTICLES = [
    article("mill", "The mill at Wending was built by Dursel", "Its wheel is made of old oak"),
    article("pump", "The pump is checked every spring", "A filter costs the town nine crowns"),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "validation.json"
    path.write_text(json.dumps({"data": ARTICLES}))
    return path


@pytest.mark.slow
def test_every_way_is_scored_and_the_store_finds_the_piece(file, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", CONFIG)
    values = flags.FlagValues()
    articles.define_flags(values)
    values(["articles", f"--run={run}", f"--data={file}", "--articles=2", "--pieces=1,4"])
    printed = []
    monkeypatch.setattr(cli, "print_result", printed.append)
    articles.main(CONFIG, values)
    (found,) = printed
    ways = {"all pieces", "right piece", "1 found", "4 found"}
    assert found["f1"].keys() == found["interval"].keys() == found["seconds"].keys() == ways
    assert (found["questions"], found["articles"], found["pieces"]) == (4, 2, [2, 2])
    assert found["found"] == {"1": 1.0, "4": 1.0}  # each question is its paragraph's own words


def test_articles_are_spread_over_the_file_and_cut(file):
    (only,) = articles.read_articles(file, 1, 50).items()
    assert only[0] == "mill" and len(only[1]) == 1
    both = articles.read_articles(file, 2, 10**6)
    assert [len(paragraphs) for paragraphs in both.values()] == [2, 2]
    questions = articles.draw(both, 3)
    assert len(questions) == 3 and all(q.golds[0] in q.paragraph for q in questions)
    with pytest.raises(DataError, match="has 2 articles: set --articles to as many or fewer"):
        articles.read_articles(file, 3, 10)
