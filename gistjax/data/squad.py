"""Questions in SQuAD v1.1 form, from files or the hub, checked row by row."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from gistjax.config import DataConfig
from gistjax.data import facts
from gistjax.data.example import Example
from gistjax.data.report import DataReport
from gistjax.errors import DataError

log = logging.getLogger(__name__)


def usable_examples(
    rows: Iterable[Any], split: str, report: DataReport
) -> tuple[list[Example], int]:
    """Checked examples from flat rows `{id, title, context, question, answers: {text: [...]}}`, and how many others."""
    examples: list[Example] = []
    dropped = 0
    seen: set[str] = set()
    context_ids: dict[str, int] = {}
    for number, row in enumerate(rows):
        row_id: Any = row.get("id") if isinstance(row, dict) else None
        name = row_id if _is_text(row_id) else f"row {number}"
        problem = _problem(row) or ("duplicate id" if row_id in seen else None)
        if problem:
            report.count(f"{split}: skipped, {problem}", name)
            dropped += 1
            continue
        texts = row["answers"]["text"]
        golds = tuple(text for text in texts if text.strip() and text in row["context"])
        if len(golds) < len(texts):
            report.count(f"{split}: gold answers that are not in the context left out", name)
        seen.add(row_id)
        context_id = context_ids.setdefault(row["context"], len(context_ids))
        title, question = row["title"], row["question"].strip()
        examples.append(Example(row_id, title, row["context"], question, golds, context_id))
    return examples, dropped


def _problem(row: Any) -> str | None:
    """Why a row cannot be used; None if it can."""
    if not isinstance(row, dict):
        return "not an object"
    for key in ("id", "title", "context", "question", "answers"):
        if row.get(key) is None:
            return f"no {key}"
    for key in ("id", "title", "context", "question"):
        if not isinstance(row[key], str):
            return f"{key} is not text"
        if not _is_text(row[key]) and key != "title":
            return f"{key} is empty or not valid Unicode"
    texts = row["answers"].get("text") if isinstance(row["answers"], dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return "answers are not a list of texts"
    if not any(text.strip() for text in texts):
        return "no answers"
    if not any(text.strip() and text in row["context"] for text in texts):
        return "no answer is in the context"
    return None


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON may carry and no tokenizer takes
        return False
    return True


def open_split(data: DataConfig, split: str) -> tuple[Iterable[Any], str]:
    """Flat rows of a split, and what to call their source."""
    if not data.path:
        return _hub_rows(data.name, split), f"{data.name} ({split})"
    if data.path == "facts":
        return facts.rows(split), f"facts ({split})"
    file: Traversable
    if data.path == "sample":
        file = resources.files("gistjax.data") / "sample" / f"{split}.json"
    else:
        folder = Path(data.path).expanduser()
        file = folder / f"{split}.json"
        if not file.is_file():
            raise DataError(
                f"{file} is not there. --config.data.path takes a folder with train.json and "
                "validation.json in SQuAD v1.1 format, or `sample`, or `facts`."
            )
    return list(_json_rows(file)), str(file)


def _json_rows(file: Traversable) -> Iterator[Any]:
    """Flat rows of a SQuAD v1.1 file. What is malformed below the article level comes out as a row
    to be counted.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
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
    """The list under a key; a stand-in that is counted as malformed where there is none."""
    items = parent.get(key) if isinstance(parent, dict) else None
    return items if isinstance(items, list) else [None]


def _flat_row(question: Any, context: Any, title: Any) -> Any:
    if not isinstance(question, dict):
        return question
    answers = question.get("answers")
    if isinstance(answers, list):
        texts = [answer.get("text") if isinstance(answer, dict) else None for answer in answers]
        answers = {"text": texts}
    row = {"title": title, "context": context, "answers": answers}
    return {**row, "id": question.get("id"), "question": question.get("question")}


def _hub_rows(name: str, split: str) -> Iterable[Any]:
    """Rows of a data set of the hub, by the `datasets` library and its cache."""
    import datasets  # slow to import, and only the hub needs it

    log.info("asking the hub for %s (%s) …", name, split)  # it tries for half a minute
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # many kinds: offline, gated, unknown, no such split
        cause = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DataError(
            f"the hub's data set {name} ({split}) cannot be had: {cause[0]}. Without the hub, "
            "give a folder with train.json and validation.json (--config.data.path=FOLDER), or "
            "--config.data.path=sample."
        ) from error
