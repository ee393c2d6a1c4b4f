"""The task of answering questions with words of the context, from data in SQuAD v1.1 form.

The data are a folder, a data set of the hub, the few questions that lie in the package (`sample`),
or generated ones (`facts`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, cast

from gistjax.config import DataConfig
from gistjax.data import facts
from gistjax.data.jsonl import read_jsonl
from gistjax.data.tasks import Source, Task
from gistjax.errors import DataError
from gistjax.runtime.texts import user_path

log = logging.getLogger(__name__)


def read(data: DataConfig, split: str) -> Source:
    """Return the rows of a split: those of `data.path`, or without one those of the hub.

    Raises:
        DataError: if they cannot be read.
    """
    if not data.path:
        return Source(f"{data.name} ({split})", _hub_rows(data.name, split))
    if data.path == "facts":
        return Source(f"facts ({split})", facts.rows(split))
    if data.path == "sample":
        packed = resources.files("gistjax.data") / "sample" / f"{split}.json"
        return Source(str(packed), _json_rows(packed))
    file = user_path(data.path) / f"{split}.json"
    if not file.exists() and file.with_suffix(".jsonl").is_file():
        return read_jsonl(data, split)
    if not file.is_file():
        raise DataError(
            f"{file} is not there. --config.data.path takes a folder with train.json and "
            "validation.json in SQuAD v1.1 format (or with train.jsonl and validation.jsonl), or "
            "`sample`, or `facts`."
        )
    return Source(str(file), _json_rows(file))


TASK = Task(read, extractive=True, unanswerable=True)


def _json_rows(file: Traversable) -> Iterator[Any]:
    """Yield the questions of a SQuAD v1.1 file, each with its context.

    Anything malformed below the article level comes out as a row to be counted.
    """
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read as JSON ({error}): is it damaged or cut short?"
        ) from error
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise DataError(
            f'{file} is not in SQuAD v1.1 format: it needs {{"data": [{{"title", "paragraphs": '
            '[{"context", "qas": [{"id", "question", "answers"}]}]}]}.'
        )
    for number, article in enumerate(articles):
        title = article.get("title") if isinstance(article, dict) else None
        for paragraph in _items(article, "paragraphs"):
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            for question in _items(paragraph, "qas"):
                yield _flat_row(question, context, title or f"article {number}")


def _items(parent: Any, key: str) -> list[Any]:
    """Return the list under a key; without one, a stand-in that is counted as malformed."""
    items = parent.get(key) if isinstance(parent, dict) else None
    return items if isinstance(items, list) else [None]


def _flat_row(question: Any, context: Any, title: Any) -> Any:
    if not isinstance(question, dict):
        return question
    answers = question.get("answers")
    if isinstance(answers, list):
        answers = [answer.get("text") if isinstance(answer, dict) else None for answer in answers]
    row = {"title": title, "context": context, "answers": answers}
    return {**row, "id": question.get("id"), "question": question.get("question")}


def _hub_rows(name: str, split: str) -> Iterable[Any]:
    """Return the rows of a data set of the hub, by the `datasets` library and its cache."""
    import datasets  # slow to import, and only the hub needs it

    log.info("asking the hub for %s (%s) …", name, split)  # it tries for half a minute
    try:
        return cast(Iterable[Any], datasets.load_dataset(name, split=split))
    except Exception as error:  # many kinds: offline, gated, unknown, no such split
        cause = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DataError(
            f"the hub's data set {name} ({split}) cannot be had: {cause[0]}. Without the hub, "
            "give a folder with train.json and validation.json (--config.data.path=FOLDER), or "
            "--config.data.path=sample."
        ) from error
