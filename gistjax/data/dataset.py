"""The examples of a run: read by its task, checked row by row, and drawn by seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gistjax.config import DataConfig
from gistjax.data.example import Articles, Dataset, Example
from gistjax.data.report import DataReport
from gistjax.data.tasks import Task, load_task
from gistjax.errors import DataError

SPLITS = ("train", "validation")


def load_dataset(data: DataConfig, seed: int) -> Dataset:
    """Read the splits of `data.task`, and draw the configured number of examples from each by seed.

    A split of which no example is wanted is not read. Rows that cannot be used are skipped and
    counted in the report.

    Raises:
        ConfigError: if there is no such task.
        DataError: if a split cannot be read, or has no usable row or too many others.
    """
    report, task = DataReport(), load_task(data.task)
    wanted = {"train": data.train_examples, "validation": data.validation_examples}
    if data.holdout and any(wanted.values()):
        train, validation = hold_out(_read_split(task, data, "train", report), data.holdout)
    else:
        train, validation = (
            _read_split(task, data, split, report) if wanted[split] else [] for split in SPLITS
        )
    drawn = {}
    for split, examples in zip(SPLITS, (train, validation), strict=True):
        drawn[split] = list(map(task.transform, draw(examples, wanted[split], seed, split)))
        if wanted[split] > len(examples):
            report.note(
                f"{split}: {wanted[split]} questions asked for, all {len(examples)} there are used"
            )
    return Dataset(
        drawn["train"],
        drawn["validation"],
        report,
        group_articles(train),
        group_articles(validation),
    )


def hold_out(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Return examples to train on, and those on a share of the contexts, the same for every seed.

    Raises:
        DataError: if one of the two would be empty.
    """
    contexts = sorted({example.context_id for example in examples})
    order = np.random.default_rng(0).permutation(contexts)
    held = set(order[: round(share * len(contexts))].tolist())
    parts = (
        [e for e in examples if e.context_id not in held],
        [e for e in examples if e.context_id in held],
    )
    if not all(parts):
        raise DataError(
            f"--config.data.holdout={share} of {len(contexts)} paragraphs leaves nothing on one "
            "side: change it."
        )
    return parts


def draw(examples: list[Example], n: int, seed: int, split: str) -> list[Example]:
    """Return the first n (-1: all) of a permutation that depends on seed and split name only."""
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(examples))
    return [examples[i] for i in order[: len(examples) if n < 0 else n]]


def group_articles(examples: Iterable[Example]) -> Articles:
    """Return the distinct contexts of each article, in the order of the examples."""
    articles: dict[str, dict[str, None]] = {}
    for example in examples:
        articles.setdefault(example.title, {})[example.context] = None
    return {title: tuple(contexts) for title, contexts in articles.items()}


def _read_split(task: Task, data: DataConfig, split: str, report: DataReport) -> list[Example]:
    source, rows = task.read(data, split)
    examples, dropped = usable_examples(rows, split, report, task, data.task)
    if not examples:
        purpose = "train on" if split == "train" else "evaluate on"
        raise DataError(
            f"{source} has no usable question, so there is nothing to {purpose}: "
            f"give another --config.data.path. {report}"
        )
    report.check_dropped(source, dropped, len(examples) + dropped, data.max_dropped)
    return examples


def usable_examples(
    rows: Iterable[Any], split: str, report: DataReport, task: Task, name: str
) -> tuple[list[Example], int]:
    """Return the examples of a task's usable rows, and the number of other rows.

    Args:
        rows: each `{context, question, answers}`, with "id" and "title" or without. Answers are
            a list of texts, or such a list under "text".
        name: the task's name.
    """
    examples: list[Example] = []
    dropped = 0
    seen: set[str] = set()
    context_ids: dict[str, int] = {}
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            row = {"id": f"{split}-{number}", "title": "", **row}
        row_id: Any = row.get("id") if isinstance(row, dict) else None
        problem = _problem(row, task) or ("duplicate id" if row_id in seen else None)
        if problem:
            label = row_id if _is_text(row_id) else f"row {number}"
            report.count(f"{split}: skipped, {problem}", label)
            dropped += 1
            continue
        seen.add(row_id)
        context_id = context_ids.setdefault(row["context"], len(context_ids))
        examples.append(_example(row, context_id, task, name))
        if len(examples[-1].answers) < len(_texts(row)):
            which = "that are not in the context" if task.extractive else "without text"
            report.count(f"{split}: gold answers {which} left out", row_id)
    return examples, dropped


def _example(row: dict[str, Any], context_id: int, task: Task, name: str) -> Example:
    golds = tuple(text for text in _texts(row) if _is_gold(text, row["context"], task))
    return Example(
        id=row["id"],
        title=row["title"],
        context=row["context"],
        question=row["question"].strip(),
        answers=golds,
        context_id=context_id,
        evidence=golds if task.extractive else (),
        task=name,
        metric=task.metric,
    )


def _problem(row: Any, task: Task) -> str | None:
    """Return why a row cannot be used, None if it can."""
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
    texts = _texts(row)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return "answers are not a list of texts"
    if not any(text.strip() for text in texts):
        return "no answers"
    if not any(_is_gold(text, row["context"], task) for text in texts):
        return "no answer is in the context" if task.extractive else "no answer is valid Unicode"
    return None


def _texts(row: dict[str, Any]) -> Any:
    answers = row["answers"]
    return answers.get("text") if isinstance(answers, dict) else answers


def _is_gold(text: str, context: str, task: Task) -> bool:
    return _is_text(text) and (text in context or not task.extractive)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON may carry and no tokenizer takes
        return False
    return True
