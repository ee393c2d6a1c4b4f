"""The examples of a run: read by its task, checked row by row, and drawn by seed."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from gistjax.config import DataConfig
from gistjax.data.example import Articles, Dataset, Example
from gistjax.data.mixture import joined
from gistjax.data.report import DataReport, missing_keys
from gistjax.data.sources import BrokenLine
from gistjax.data.tasks import PACKAGED, Task, each_task, load_task, told_of
from gistjax.errors import DataError
from gistjax.runtime.texts import unix_lines

SPLITS = ("train", "validation")
ASKED = ("context", "question", "answers")
"""Keys that every row must have."""
NOT_COPIED = "no answer is in the context"


def load_dataset(data: DataConfig, seed: int) -> Dataset:
    """Read the splits of each task, and draw the configured number of examples from each by seed.

    A split of which no example is wanted is not read. Rows that cannot be used are skipped and
    counted in the report. Every question of the validation split is kept, those of the training
    split that can be trained on.

    Raises:
        ConfigError: if there is no such task, or it cannot be trained on so.
        DataError: if a split cannot be read, or has no usable row or too many others; of a mixture,
            naming the task.
    """
    if not data.mixture:
        return _load(data, seed)
    tasks = each_task(data)
    for name, own in tasks.items():
        with told_of(name):
            _check_trains(own)
    for name, own in tasks.items():
        if own.path not in ("", *PACKAGED) and not Path(own.path).is_dir():
            raise DataError(
                f"data.tasks.{name}: {own.path} is no folder. --config.data.path of a mixture "
                "takes a folder with one folder of data for each task."
            )
    parts = {}
    for name, own in tasks.items():
        with told_of(name):
            parts[name] = _load(own, seed)
    return joined(parts)


def _check_trains(data: DataConfig) -> None:
    if data.train_examples or data.holdout:
        load_task(data.task).check_trains(data.task, data)


def _load(data: DataConfig, seed: int) -> Dataset:
    report, task = DataReport(), load_task(data.task)
    wanted = {"train": data.train_examples, "validation": data.validation_examples}
    _check_trains(data)
    read = _read_held_out if data.holdout and any(wanted.values()) else _read_splits
    train, validation = read(task, data, wanted, report)
    drawn = {}
    for split, examples in zip(SPLITS, (train, validation), strict=True):
        chosen = draw(examples, wanted[split], seed, split)
        for example in chosen:
            if reason := _untrainable(example, task):
                report.count(f"{split}: {reason}, still scored", example.id)
        drawn[split] = list(map(task.transform, chosen))
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


def _read_splits(
    task: Task, data: DataConfig, wanted: Mapping[str, int], report: DataReport
) -> tuple[list[Example], list[Example]]:
    """Read the splits of which examples are wanted."""
    train, validation = (
        _read_split(task, data, split, report, split == "validation") if wanted[split] else []
        for split in SPLITS
    )
    return train, validation


def _read_held_out(
    task: Task, data: DataConfig, wanted: Mapping[str, int], report: DataReport
) -> tuple[list[Example], list[Example]]:
    """Read the training split alone, and score on a share of its contexts."""
    whole = _read_split(task, data, "train", report, scored=True)
    rest, validation = hold_out(whole, data.holdout)
    train = list(_trainable(rest, task, report))
    _note_extractive(report, data.task, "train", len(rest))
    name = f"{data.path or data.name} (train)"
    report.check_dropped(name, len(rest) - len(train), len(rest), data.max_dropped)
    return train, validation


def _read_split(
    task: Task, data: DataConfig, split: str, report: DataReport, scored: bool
) -> list[Example]:
    source, rows = task.read(data, split)
    examples, dropped = usable_examples(rows, split, report, task, data.task, scored)
    if not any(example.answers for example in examples):
        purpose = "evaluate on" if split == "validation" else "train on"
        why = report if examples or dropped else "It has no rows at all."
        raise DataError(
            f"{source} has no usable question, so there is nothing to {purpose}: "
            f"give another --config.data.path.\n{why}"
        )
    report.check_dropped(source, dropped, len(examples) + dropped, data.max_dropped)
    return examples


def usable_examples(
    rows: Iterable[Any],
    split: str,
    report: DataReport,
    task: Task,
    name: str,
    scored: bool = False,
) -> tuple[list[Example], int]:
    """Return the examples of a task's usable rows, and the number of other rows.

    Args:
        rows: each `{context, question, answers}`, with "id" and "title" or without. Answers are
            a list of texts, or such a list under "text".
        name: the task's name.
        scored: keep every question with every gold answer, also those that cannot be trained on.
    """
    examples: list[Example] = []
    dropped = 0
    seen: set[str] = set()
    context_ids: dict[str, int] = {}
    for number, row in enumerate(rows):  # ids count from 0, messages from 1
        has_id = isinstance(row, dict) and "id" in row
        missing = _missing(row)
        row = _filled_in(row, f"{split}-{number}") if isinstance(row, dict) else row
        row_id: Any = row.get("id") if isinstance(row, dict) else None
        problem = _problem(row, task)
        if not problem:
            context_id = context_ids.get(row["context"], len(context_ids))
            example = _example(row, context_id, task, name)
            if not scored:
                problem = "duplicate id" if row_id in seen else _untrainable(example, task)
        if problem:
            label = row_id if has_id and _is_text(row_id) else f"row {number + 1}"
            if isinstance(row, BrokenLine):
                label = f"line {row.number}"
            if missing and f"{split}: skipped, {problem}" not in report.counts:
                report.note(f"{split}, {label}: {missing}")
            report.count(f"{split}: skipped, {problem}", label)
            dropped += 1
            continue
        if len(example.answers) < len(_texts(row)):
            report.count(f"{split}: gold answers without text left out", row_id)
        if row_id in seen:
            report.count(f"{split}: ids that occur again, numbered", row_id)
            example = dataclasses.replace(example, id=_numbered(row_id, seen))
        seen.add(example.id)
        context_ids[example.context] = context_id
        examples.append(example)
    _note_extractive(report, name, split, len(examples) + dropped)
    return examples if scored else list(_trainable(examples, task, report)), dropped


def _filled_in(row: dict[str, Any], own_id: str) -> dict[str, Any]:
    """Return a row with id and title, and with line feeds alone at the ends of its lines."""
    row = {"id": own_id, **row, "title": "" if row.get("title") is None else row["title"]}
    for key in ("context", "question"):
        if isinstance(row.get(key), str):
            row[key] = unix_lines(row[key])
    if isinstance(texts := _texts(row), list):
        row["answers"] = [unix_lines(text) if isinstance(text, str) else text for text in texts]
    return row


def _numbered(row_id: str, seen: Container[str]) -> str:
    """Return an id of its own for a row whose id was there before: `ID#2`, `ID#3`, …"""
    return next(new for n in count(2) if (new := f"{row_id}#{n}") not in seen)


def _trainable(examples: Iterable[Example], task: Task, report: DataReport) -> Iterator[Example]:
    """Yield the examples that can be trained on, with the gold answers that can; count others."""
    for example in examples:
        if reason := _untrainable(example, task):
            report.count(f"train: skipped, {reason}", example.id)
            continue
        golds = example.answers
        if task.extractive:
            golds = (*example.evidence, *(gold for gold in golds if gold in task.other_answers))
        if len(golds) < len(example.answers):
            report.count("train: gold answers that are not in the context left out", example.id)
        yield dataclasses.replace(example, answers=golds or (task.abstention,))


def _note_extractive(report: DataReport, task: str, split: str, rows: int) -> None:
    """Say what an extractive task takes, if that is why half of its rows cannot be trained on."""
    if 2 * report.counts[f"{split}: skipped, {NOT_COPIED}"] > rows:
        report.note(
            f"the task {task!r} takes answers word for word from the context, as most here are "
            "not: for answers of any words set --config.data.task=jsonl, which reads "
            f'{split}.jsonl, or add a task (CONTRIBUTING.md, "Add a task")'
        )


def _untrainable(example: Example, task: Task) -> str | None:
    """Return why an example cannot be trained on, None if it can."""
    if not example.answers:
        return None if task.abstention else "no answers"
    found = not task.extractive or example.evidence or set(example.answers) & {*task.other_answers}
    return None if found else NOT_COPIED


def _example(row: dict[str, Any], context_id: int, task: Task, name: str) -> Example:
    golds = tuple(text.strip() for text in _texts(row) if _is_text(text))
    return Example(
        id=row["id"],
        title=row["title"],
        context=row["context"],
        question=row["question"].strip(),
        answers=golds,
        context_id=context_id,
        evidence=tuple(_found(golds, row["context"], task.other_answers))
        if task.extractive
        else (),
        task=name,
        metric=task.metric,
        abstention=task.abstention,
    )


def _found(golds: Iterable[str], context: str, others: Container[str]) -> Iterator[str]:
    """Yield the gold answers that stand in the context, as they are spelt there.

    The same letters may be composed (NFC) in one and decomposed (NFD) in the other.

    Args:
        others: answers that need not be copied, and are left out.
    """
    for gold in golds:
        spellings = (gold, *(unicodedata.normalize(form, gold) for form in ("NFC", "NFD")))
        if gold not in others:
            yield from islice((text for text in spellings if text in context), 1)


def _problem(row: Any, task: Task) -> str | None:
    """Return why a row is no question of a task, None if it is one."""
    if isinstance(row, BrokenLine):
        return "not JSON"
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
        return None if task.unanswerable else "no answers"
    return None if any(map(_is_text, texts)) else "no answer is valid Unicode"


def _missing(row: Any) -> str:
    """Return which keys a row lacks and which it has; nothing if it lacks none."""
    lacks = [key for key in ASKED if isinstance(row, dict) and key not in row]
    return missing_keys(lacks, row) if lacks else ""


def _texts(row: dict[str, Any]) -> Any:
    answers = row.get("answers")
    return answers.get("text") if isinstance(answers, dict) else answers


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON may carry and no tokenizer takes
        return False
    return True
