"""The task of `data.hotpotqa` without its distractors: the paragraphs that are needed alone."""

from __future__ import annotations

import dataclasses

from gistjax.config import DataConfig
from gistjax.data import hotpotqa
from gistjax.data.sources import Source


def read(data: DataConfig, split: str) -> Source:
    """Return the rows of a split with their supporting paragraphs.

    Raises:
        DataError: if they cannot be read.
    """
    return hotpotqa.read(data, split, supporting=True)


TASK = dataclasses.replace(hotpotqa.TASK, read=read)
