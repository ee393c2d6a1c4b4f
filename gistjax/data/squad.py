"""Questions in SQuAD v1.1 form: read, checked row by row, and drawn by seed."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from gistjax.config import DataConfig
from gistjax.data import facts
from gistjax.data.report import DataReport
from gistjax.errors import DataError

SPLITS = ("train", "validation")
ASK = "Which question is answered by: {answer}"
Articles = dict[str, tuple[str, ...]]
"""Every usable paragraph of a split, by article title."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A question on a paragraph; rows of one paragraph, and no others, share `context_id`."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[str, ...]  # gold answers; the first is trained on, all are scored against
    context_id: int  # of the paragraph, within the split
    asked: tuple[str, ...] = ()  # where the question is to be written (`swap`): the answers to it

    @property
    def in_context(self) -> tuple[str, ...]:
        """What stands in the context: the answers."""
        return self.asked or self.answers


@dataclass(frozen=True)
class Squad:
    """The drawn examples, and all paragraphs of each split to fill contexts with."""

    train: list[Example]
    validation: list[Example]
    report: DataReport
    train_articles: Articles
    validation_articles: Articles


def load_squad(data: DataConfig, seed: int) -> Squad:
    """Reads the splits and draws `train_examples` and `validation_examples` rows by seed; a split of 0 rows is not read.

    Rows that cannot be used are skipped and counted in the report.

    Raises:
        DataError: if the files or the hub data set cannot be read, or a split has no usable row, or too many others.
    """
    report = DataReport()
    drawn = {}
    wanted = {"train": data.train_examples, "validation": data.validation_examples}
    if data.holdout and any(wanted.values()):
        train, validation = hold_out(_usable_split(data, "train", report), data.holdout)
    else:
        train, validation = (
            _usable_split(data, split, report) if wanted[split] else [] for split in SPLITS
        )
    for split, examples in (("train", train), ("validation", validation)):
        drawn[split] = draw(examples, wanted[split], seed, split)
        if data.task == "question":
            drawn[split] = [swap(example) for example in drawn[split]]
        if wanted[split] > len(examples):
            report.note(
                f"{split}: {wanted[split]} questions asked for, all {len(examples)} there are used"
            )
    return Squad(
        drawn["train"],
        drawn["validation"],
        report,
        group_articles(train),
        group_articles(validation),
    )


def swap(example: Example) -> Example:
    """The question as what is to be written, its answer as what is asked for."""
    question = ASK.format(answer=example.answers[0])
    return dataclasses.replace(
        example, question=question, answers=(example.question,), asked=example.answers
    )


def hold_out(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and those of a share of the paragraphs to choose settings by, the same for every seed.

    Raises:
        DataError: if one of the two would be empty.
    """
    contexts = sorted({example.context_id for example in examples})
    held = set(
        np.random.default_rng(0).permutation(contexts)[: round(share * len(contexts))].tolist()
    )
    parts = (
        [e for e in examples if e.context_id not in held],
        [e for e in examples if e.context_id in held],
    )
    if not all(parts):
        raise DataError(
            f"--config.data.holdout={share} of {len(contexts)} paragraphs leaves nothing on one side: change it."
        )
    return parts


def _usable_split(data: DataConfig, split: str, report: DataReport) -> list[Example]:
    rows, source = _open_split(data, split)
    examples, dropped = usable_examples(rows, split, report)
    if not examples:
        raise DataError(
            f"{source} has no usable question, so there is nothing to {_purpose(split)}: "
            f"give another --config.data.path. {report}"
        )
    report.check_dropped(source, dropped, len(examples) + dropped, data.max_dropped)
    return examples


def _purpose(split: str) -> str:
    return "train on" if split == "train" else "evaluate on"


def draw(examples: list[Example], n: int, seed: int, split: str) -> list[Example]:
    """The first n (-1: all) of a permutation that depends on the seed and the split's name only."""
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(examples))
    return [examples[i] for i in order[: len(examples) if n < 0 else n]]


def group_articles(examples: Iterable[Example]) -> Articles:
    """The distinct paragraphs of each article, in file order."""
    articles: dict[str, dict[str, None]] = {}
    for example in examples:
        articles.setdefault(example.title, {})[example.context] = None
    return {title: tuple(paragraphs) for title, paragraphs in articles.items()}


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


def _open_split(data: DataConfig, split: str) -> tuple[Iterable[Any], str]:
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
