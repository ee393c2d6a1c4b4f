"""Questions in JSON Lines, one `{"context", "question", "answers"}` a line.

"id" and "title" are optional.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gistjax.config import DataConfig
from gistjax.data.tasks import Source
from gistjax.errors import DataError
from gistjax.runtime.texts import text_lines, user_path


def read_jsonl(data: DataConfig, split: str) -> Source:
    """Return the rows of `train.jsonl` or `validation.jsonl` in the folder `data.path`.

    Raises:
        DataError: if the file is missing; later, while rows are taken, if it cannot be read.
    """
    file = user_path(data.path) / f"{split}.jsonl"
    if not file.is_file():
        raise DataError(
            f"{file} is not there. --config.data.path takes a folder with train.jsonl and "
            'validation.jsonl, each line {"context": …, "question": …, "answers": ["…", …]}.'
        )
    return Source(str(file), _rows(file))


def _rows(file: Path) -> Iterator[Any]:
    """Yield the value of each line; one that is no JSON comes out as text, to be counted."""
    try:
        with file.open("rb") as stream, text_lines(stream) as lines:
            for line in filter(str.strip, lines):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): is it damaged or cut short?") from error
