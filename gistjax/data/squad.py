"""The task of answering questions with words of the context, from data in SQuAD v1.1 form.

The data are a folder, a data set of the hub, the few questions that lie in the package (`sample`),
or generated ones (`facts`).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from gistjax.config import DataConfig
from gistjax.data import facts
from gistjax.data.sources import (
    SQUAD,
    Hub,
    Source,
    find_file,
    items,
    line_files,
    read_file,
    read_json_file,
)
from gistjax.data.tasks import Task
from gistjax.errors import DataError

OFFICIAL = {"train": "train-v1.1.json", "validation": "dev-v1.1.json"}


def read(data: DataConfig, split: str) -> Source:
    """Return the rows of a split: those of `data.path`, or without one those of the hub.

    Raises:
        DataError: if they cannot be read.
    """
    return read_squad(data, split, OFFICIAL[split], Hub(SQUAD))


def read_squad(data: DataConfig, split: str, official: str, hub: Hub) -> Source:
    """Return the rows of a split in SQuAD's form, v1.1 or v2.0.

    Args:
        official: the name of its file in the official distribution.
        hub: the data set without a path.

    Raises:
        DataError: if they cannot be read.
    """
    if not data.path:
        return hub.rows(data, split)
    if data.path == "facts":
        return Source(f"facts ({split})", facts.rows(split))
    if data.path == "sample":
        packed = resources.files("gistjax.data") / "sample" / f"{split}.json"
        return Source(str(packed), _json_rows(packed))
    about = (
        "train.json and validation.json in SQuAD v1.1 format (or with train.jsonl and "
        f"validation.jsonl, or {official}), or `sample`, or `facts`"
    )
    file = find_file(data, (f"{split}.json", *line_files(split), official), about)
    return Source(str(file), _json_rows(file)) if file.suffix == ".json" else read_file(file)


TASK = Task(read, extractive=True, unanswerable=True, folder="squad")


def _json_rows(file: Traversable) -> Iterator[Any]:
    """Yield the questions of a SQuAD v1.1 file, each with its context.

    Anything malformed below the article level comes out as a row to be counted.
    """
    content = read_json_file(file)
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise DataError(
            f'{file} is not in SQuAD v1.1 format: it needs {{"data": [{{"title", "paragraphs": '
            '[{"context", "qas": [{"id", "question", "answers"}]}]}]}.'
        )
    for number, article in enumerate(articles):
        title = article.get("title") if isinstance(article, dict) else None
        for paragraph in items(article, "paragraphs"):
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            for question in items(paragraph, "qas"):
                yield _flat_row(question, context, title or f"article {number}")


def _flat_row(question: Any, context: Any, title: Any) -> Any:
    if not isinstance(question, dict):
        return question
    answers = question.get("answers")
    if isinstance(answers, list):
        answers = [answer.get("text") if isinstance(answer, dict) else None for answer in answers]
    row = {"title": title, "context": context, "answers": answers}
    return {**row, "id": question.get("id"), "question": question.get("question")}
