"""The task of HotpotQA's distractor setting: two of ten paragraphs together answer a question.

All ten are compressed together, each behind its title; under `hotpotqa_supporting` only those that
are needed. Answers are spans of the text, yes and no.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gistjax.config import DataConfig
from gistjax.data.filling import join
from gistjax.data.sources import Hub, Source, find_file, line_files, read_file
from gistjax.data.tasks import Task

OFFICIAL = {"train": "hotpot_train_v1.1.json", "validation": "hotpot_dev_distractor_v1.json"}
HUB = Hub("hotpotqa/hotpot_qa", "distractor")


def read(data: DataConfig, split: str, supporting: bool = False) -> Source:
    """Return the rows of a split, from the official file, JSON Lines or the hub.

    Args:
        supporting: leave out the paragraphs that are not needed.

    Raises:
        DataError: if they cannot be read.
    """
    if data.path:
        names = (f"{split}.json", *line_files(split), OFFICIAL[split])
        about = f"train and validation .jsonl(.gz) or .json of HotpotQA, or {OFFICIAL[split]}"
        source = read_file(find_file(data, names, about))
    else:
        source = HUB.rows(data, split)
    return Source(source.name, _rows(source.rows, supporting))


TASK = Task(
    read,
    instruction="Answer the question with yes, no or a short phrase copied from the context.",
    metric="hotpotqa",
    extractive=True,
    other_answers=("yes", "no"),
    folder="hotpotqa",
)


def _rows(found: Iterable[Any], supporting: bool) -> Iterator[Any]:
    for row in found:
        if not isinstance(row, dict):
            yield row
            continue
        paragraphs = _paragraphs(row)
        if supporting and paragraphs is not None:
            paragraphs = _needed(paragraphs, _supporting(row))
        yield {
            "id": row.get("id", row.get("_id")),
            "question": row.get("question"),
            "context": None
            if paragraphs is None
            else join([f"{t}: {text}" for t, text in paragraphs]),
            "answers": None if row.get("answer") is None else [row["answer"]],
        }


def _paragraphs(row: dict[str, Any]) -> list[tuple[str, str]] | None:
    """Return title and text of each paragraph; None if they are malformed.

    The official file has `[[title, [sentence, …]], …]`, the hub `{"title": […], "sentences": […]}`
    under "context"; JSON Lines may have `[{"title", "text"}]` under "paragraphs".
    """
    try:
        if "paragraphs" in row:
            pairs = [(p["title"], p["text"]) for p in row["paragraphs"]]
        elif isinstance(row["context"], dict):
            titles, texts = row["context"]["title"], row["context"]["sentences"]
            pairs = [(t, "".join(s)) for t, s in zip(titles, texts, strict=True)]
        else:
            pairs = [(title, "".join(sentences)) for title, sentences in row["context"]]
        return [(title.strip(), text.strip()) for title, text in pairs]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _needed(paragraphs: list[tuple[str, str]], titles: set[Any]) -> list[tuple[str, str]] | None:
    """Return the paragraphs of these titles; None if one is missing, as in the fullwiki setting."""
    found = [pair for pair in paragraphs if pair[0] in titles]
    return found if {title for title, _ in found} == titles else None


def _supporting(row: dict[str, Any]) -> set[Any]:
    """Return the titles of the paragraphs that are needed.

    JSON Lines mark the paragraphs; the others have `[[title, sentence], …]`, the hub by columns.
    """
    facts = row.get("supporting_facts")
    if "paragraphs" in row:
        titles = [p["title"] for p in row["paragraphs"] if p.get("supporting")]
    elif isinstance(facts, dict):
        titles = facts.get("title") or []
    else:
        titles = [fact[0] for fact in facts or [] if isinstance(fact, list) and fact]
    return {title.strip() for title in titles if isinstance(title, str)}
