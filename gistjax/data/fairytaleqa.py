"""The task of FairytaleQA: questions on whole stories, of about 2,300 words.

Answers are written freely: a part of them stands in no sentence of the story. The hub has stories
by sections, each with its questions; whole stories are in JSON Lines, a story a line. Under
`fairytaleqa_sections` only the sections that a question is about are compressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gistjax.config import DataConfig
from gistjax.data.filling import join
from gistjax.data.sources import Hub, Source, find_file, items, line_files, read_file
from gistjax.data.tasks import Task
from gistjax.errors import DataError

HUB = Hub("WorkInTheDark/FairytaleQA")


def read(data: DataConfig, split: str) -> Source:
    """Return the questions of a split, each with its whole story.

    Raises:
        DataError: if they cannot be read, or no path is given: the hub has no whole stories.
    """
    if not data.path:
        raise DataError(
            "FairytaleQA's whole stories are not on the hub: give a folder with train.jsonl and "
            "validation.jsonl (--config.data.path=FOLDER), or take "
            "--config.data.task=fairytaleqa_sections."
        )
    source = read_stories(data, split)
    return Source(source.name, _questions(source.rows, by_section=False))


def read_sections(data: DataConfig, split: str) -> Source:
    """Return the questions of a split, each with the sections that it is about.

    Raises:
        DataError: if they cannot be read.
    """
    if not data.path:
        source = HUB.rows(data, split)
        return Source(source.name, map(_hub_row, source.rows))
    source = read_stories(data, split)
    return Source(source.name, _questions(source.rows, by_section=True))


def read_stories(data: DataConfig, split: str) -> Source:
    """Return the stories of a split, `{"context", "sections", "questions"}`.

    Raises:
        DataError: if they cannot be read.
    """
    about = "train.jsonl and validation.jsonl (or .jsonl.gz), a story a line"
    return read_file(find_file(data, line_files(split), about))


TASK = Task(
    read,
    instruction="Answer the question about the story in a few words.",
    folder="fairytaleqa",
)


def _questions(stories: Iterable[Any], by_section: bool) -> Iterator[Any]:
    for story in stories:
        for question in items(story, "questions"):
            if not isinstance(question, dict):
                yield question
                continue
            row = {key: question[key] for key in ("id", "question", "answers") if key in question}
            context = _sections(story, question) if by_section else story.get("context")
            yield {**row, "context": context}


def _sections(story: dict[str, Any], question: dict[str, Any]) -> str | None:
    """Return the text of a question's sections; None if they are malformed."""
    try:
        texts = {part["section"]: part["text"] for part in story["sections"]}
        return join([texts[name] for name in question["sections"]])
    except (KeyError, TypeError):
        return None


def _hub_row(row: Any) -> Any:
    """Return a question on a section of a story, with the answers that it has."""
    if not isinstance(row, dict):
        return row
    answers = [row.get("answer1"), row.get("answer2")]
    return {
        "title": row.get("story_name"),
        "context": row.get("story_section"),
        "question": row.get("question"),
        "answers": [answer for answer in answers if answer],
    }
