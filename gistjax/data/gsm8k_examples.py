"""The task of GSM8K's word problems behind worked examples: these are compressed, once for all.

The examples are the first `WORKED` problems of the training split, in validation too. They are
the context of every problem, which is asked whole; they are not asked themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from gistjax.config import DataConfig
from gistjax.data import gsm8k
from gistjax.data.filling import join
from gistjax.data.sources import Source
from gistjax.errors import DataError

WORKED = 4


def read(data: DataConfig, split: str) -> Source:
    """Return the problems of a split, all with the worked examples as their context.

    Raises:
        DataError: if they cannot be read, or there are too few examples.
    """
    examples = list(islice(filter(_is_whole, gsm8k.read_problems(data, "train").rows), WORKED))
    if len(examples) < WORKED:
        raise DataError(
            f"the training split has {len(examples)} whole problems, and {WORKED} are the worked "
            "examples of the task 'gsm8k_examples': give GSM8K's own."
        )
    context = join(
        [f"Problem: {row['question']}\nSolution: {row['answers'][0]}" for row in examples]
    )
    asked = {row["question"] for row in examples}
    source = gsm8k.read_problems(data, split)
    return Source(source.name, _behind(context, source.rows, asked))


TASK = dataclasses.replace(gsm8k.TASK, read=read)


def _is_whole(row: Any) -> bool:
    """Return whether a problem has its question and its solution."""
    return (
        isinstance(row, Mapping)
        and isinstance(row["question"], str)
        and isinstance(row["answers"], list)
    )


def _behind(context: str, problems: Iterable[Any], asked: set[str]) -> Iterator[Any]:
    for row in problems:
        if not isinstance(row, dict):
            yield row
        elif row["question"] not in asked:
            yield {**row, "context": context}
