"""The examples of a run: the usable ones of each split, drawn by seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from gistjax.config import DataConfig
from gistjax.data.example import Articles, Dataset, Example
from gistjax.data.report import DataReport
from gistjax.data.squad import open_split, usable_examples
from gistjax.errors import DataError

SPLITS = ("train", "validation")
ASK = "Which question is answered by: {answer}"


def load_dataset(data: DataConfig, seed: int) -> Dataset:
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
    return Dataset(
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
    rows, source = open_split(data, split)
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
