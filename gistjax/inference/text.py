"""Texts and questions as a user gives them: read from files, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gistjax.data.splitting import join_wrapped_lines
from gistjax.errors import DataError
from gistjax.runtime.files import is_file, read_text
from gistjax.runtime.texts import unix_lines

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "article.txt"
"""A text of a page that comes with gistjax, about an invented mill."""


def read_context(names: Sequence[str]) -> str:
    """Return the text of one or several files, hard-wrapped lines joined, a blank line between.

    Args:
        names: files; `-` is standard input, `sample` the text that comes with gistjax.

    Raises:
        DataError: if a file is missing, empty or no text.
    """
    files = [str(SAMPLE) if name == "sample" and not is_file(name) else name for name in names]
    return "\n\n".join(join_wrapped_lines(read_text(file)) for file in files)


def check_text(text: object, what: str) -> str:
    """Return a text as it is tokenised: its lines end with a line feed.

    Args:
        what: the text's part, context or question, for the message.

    Raises:
        DataError: if it is empty, no `str`, or holds what UTF-8 cannot, such as stray bytes.
    """
    if not isinstance(text, str):
        raise DataError(f"the {what} must be one text (str), not {type(text).__name__}.")
    if not text.strip():
        raise DataError(f"the {what} is empty.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {what} is no UTF-8 text ({error.reason} at character {error.start}): "
            "convert it first."
        ) from error
    return unix_lines(text)


def words_that_fit(text: str, tokens: int, limit: int) -> str:
    """Return how many of a text's words fit a limit of tokens, for a message; may be empty."""
    words = len(text.split())
    fitting = words * limit // tokens // 10 * 10
    return f" (about {fitting} of its {words} words)" if fitting else ""
