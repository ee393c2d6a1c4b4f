"""The task of saying a number of a GSM8K problem's body again: what compression keeps of numbers.

Each number that stands in the body once is asked for, by its sentence with `what` in its place.
The mean score is the recall of numbers; small models do that long before they can solve problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from gistjax.config import DataConfig
from gistjax.data import gsm8k
from gistjax.data.sources import Source
from gistjax.data.tasks import Task

BLANK = "what"
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?](?!\s|$)[^.!?]*)*[.!?]?")
_NUMBER = re.compile(r"(?<![\w.,/-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/-]|[.,]\d)")


def read(data: DataConfig, split: str) -> Source:
    """Return the questions for numbers of a split's problems.

    Raises:
        DataError: if the problems cannot be read.
    """
    source = gsm8k.read(data, split)
    return Source(source.name, _ask_all(source.rows))


TASK = Task(
    read,
    instruction="Say which number of the context stands in place of the word what.",
    metric="number",
    extractive=True,
    folder="gsm8k",
)


def number_questions(body: str) -> Iterator[tuple[str, str]]:
    """Yield a question and its answer for each number that stands in a body once."""
    numbers = _NUMBER.findall(body)
    for sentence in _SENTENCE.findall(body):
        for match in _NUMBER.finditer(sentence):
            if numbers.count(match[0]) == 1:
                asked = sentence[: match.start()] + BLANK + sentence[match.end() :]
                yield asked.strip().rstrip(".!?") + "?", match[0]


def _ask_all(problems: Iterable[Any]) -> Iterator[Any]:
    for place, row in enumerate(problems):
        if not (isinstance(row, dict) and isinstance(row.get("context"), str)):
            yield row
            continue
        for number, (question, answer) in enumerate(number_questions(row["context"])):
            own_id = f"{row.get('id', place)}-{number}"
            yield {
                "id": own_id,
                "context": row["context"],
                "question": question,
                "answers": [answer],
            }
