"""The task of Natural Questions on the paragraph with the answer: for evaluation only.

People searched without seeing the paragraph, so the questions have other words than it. The prompt
is that of SQuAD, whose models are tried on it as they are.
"""

from __future__ import annotations

from gistjax.config import DataConfig
from gistjax.data.jsonl import read_jsonl
from gistjax.data.sources import Source
from gistjax.data.tasks import Task
from gistjax.errors import DataError


def read(data: DataConfig, split: str) -> Source:
    """Return the rows of `validation.jsonl` or `validation.jsonl.gz` in the folder `data.path`.

    Raises:
        DataError: if they cannot be read.
    """
    if not data.path:
        raise DataError(
            "the hub has no Natural Questions with gold paragraphs in this form: give a folder "
            "with validation.jsonl(.gz), --config.data.path=FOLDER."
        )
    return read_jsonl(data, split)


TASK = Task(read, extractive=True, trains=False)
