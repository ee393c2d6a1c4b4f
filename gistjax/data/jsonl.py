"""The task of a user's own questions: JSON Lines, one `{"context", "question", "answers"}` a line.

"id" and "title" are optional. Answers need not stand in the context.
"""

from __future__ import annotations

from gistjax.config import DataConfig
from gistjax.data.sources import Source, find_file, line_files, read_file
from gistjax.data.tasks import Task


def read_jsonl(data: DataConfig, split: str) -> Source:
    """Return the rows of `train.jsonl` or `validation.jsonl` (or `.jsonl.gz`) in `data.path`.

    Raises:
        DataError: if the file is missing; later, while rows are taken, if it cannot be read.
    """
    about = (
        "train.jsonl and validation.jsonl (or .jsonl.gz), each line "
        '{"context": …, "question": …, "answers": ["…", …]}'
    )
    return read_file(find_file(data, line_files(split), about))


TASK = Task(
    read_jsonl,
    instruction="Answer the question about the context. Be brief.",
    unanswerable=True,
)
