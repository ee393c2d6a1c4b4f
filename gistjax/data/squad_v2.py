"""The task of `data.squad` with questions that the paragraph does not answer, as in SQuAD 2.0.

To those the right answer is `NOT_IN_TEXT`: it is what is trained, and it is scored as no answer. A
training file without such questions, as SQuAD 1.1's, gets some: half of its questions are also
asked of another paragraph of their article in which no gold answer stands, so that a third has no
answer, as in SQuAD 2.0.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from gistjax.config import DataConfig
from gistjax.data.prompts import NOT_IN_TEXT
from gistjax.data.sources import Hub, Source
from gistjax.data.squad import read_squad
from gistjax.data.tasks import Task
from gistjax.errors import DataError

OFFICIAL = {"train": "train-v2.0.json", "validation": "dev-v2.0.json"}


def read(data: DataConfig, split: str) -> Source:
    """Return the rows of a split; those to train on have some that are not answered.

    Raises:
        DataError: if they cannot be read, or questions made so would find their own paragraph in a
            filled context.
    """
    source = read_squad(data, split, OFFICIAL[split], Hub("rajpurkar/squad_v2"))
    if split != "train":
        return source
    rows = list(source.rows)
    if any(_golds(row) == [] for row in rows):
        return Source(source.name, rows)
    if data.context != "paragraph":
        raise DataError(
            f"{source.name} has no question without an answer, and one that is asked of another "
            "paragraph could find its own among those that fill the context: set "
            "--config.data.context=paragraph, or train on SQuAD 2.0."
        )
    return Source(source.name, [*rows, *ask_elsewhere(rows)])


TASK = Task(
    read,
    instruction=(
        "Answer the question with a short phrase copied from the context. If the context does not "
        f'answer it, say "{NOT_IN_TEXT}".'
    ),
    extractive=True,
    unanswerable=True,
    abstention=NOT_IN_TEXT,
)


def ask_elsewhere(rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield half of the questions again, each on another paragraph of its article, unanswered.

    Which questions and paragraphs depends on their ids alone. Paragraphs with a gold answer in them
    are not taken, in any case of letters.
    """
    good = [row for row in rows if isinstance(row, dict) and _is_question(row)]
    articles: dict[str, dict[str, None]] = {}
    for row in good:
        articles.setdefault(row["title"], {})[row["context"]] = None
    paragraphs = {title: list(contexts) for title, contexts in articles.items()}
    for row in good:
        number = zlib.crc32(row["id"].encode("utf-8", "replace"))
        own = paragraphs[row["title"]]
        context = own[number // 2 % len(own)]
        told = any(gold.lower() in context.lower() for gold in _golds(row))
        if number % 2 == 0 and context != row["context"] and not told:
            yield {**row, "id": f"{row['id']}#elsewhere", "context": context, "answers": []}


def _is_question(row: dict[str, Any]) -> bool:
    texts = [row.get(key) for key in ("id", "title", "context", "question")]
    golds = _golds(row)
    return all(isinstance(text, str) for text in (*texts, *golds)) and bool(golds)


def _golds(row: Any) -> list[Any]:
    """Return the gold answers of a row of a file or of the hub; `[None]` if it is malformed."""
    answers = row.get("answers") if isinstance(row, dict) else None
    texts = answers.get("text") if isinstance(answers, dict) else answers
    return texts if isinstance(texts, list) else [None]
