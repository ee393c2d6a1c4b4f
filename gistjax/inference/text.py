"""Texts and questions as a user gives them: read from files, checked, and cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gistjax.data.splitting import CHARACTERS_PER_TOKEN, join_wrapped_lines
from gistjax.errors import DataError
from gistjax.runtime.files import is_file, read_text
from gistjax.runtime.texts import unix_lines

if TYPE_CHECKING:
    from gistjax.inference.document import Document
    from gistjax.inference.engine import Engine

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


def longer_than_trained(document: Document) -> str:
    """Return what to expect of a text that is longer than those in training, "" of another."""
    engine, tokens = document.engine, document.engine.trained_tokens
    if document.pieces > 1 and engine.config.compresses:
        return (
            f"compressed in {document.pieces} pieces, since the compressor was trained on at most "
            f"{tokens} tokens: answers get worse with each."
        )
    if document.pieces == 1 and engine.config.selects and document.tokens > tokens:
        return (
            f"the text has {document.tokens} tokens, and the compressor was trained on at most "
            f"{tokens}: how much it loses of a longer one was not measured."
        )
    return ""


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


def pieces_of(text: str, engine: Engine, ratio: float) -> list[np.ndarray]:
    """Return a text's token ids, in pieces as long as contexts in training.

    Raises:
        DataError: if the text is empty or no text, or too long, by how much; or if each of its
            pieces would keep what is meant for all, for want of a ratio.
    """
    text = check_text(text, "context")
    limit, name = engine.max_tokens, engine.config.model.known_as
    if not engine.takes_any_length and len(text) > CHARACTERS_PER_TOKEN * limit:
        raise DataError(
            f"the context has {len(text)} characters, but {name} reads at most {limit} tokens: "
            "ask about a part of it."
        )
    pieces = [piece.ids for piece in engine.cut(text)]
    tokens = sum(map(len, pieces))
    if not engine.takes_any_length and tokens > limit:
        raise DataError(
            f"the context has {tokens} tokens, but {name} reads at most {limit}"
            f"{words_that_fit(text, tokens, limit)}: ask about a part of it."
        )
    if len(pieces) > 1 and engine.config.selects and not ratio:
        raise DataError(
            f"the context has {tokens} tokens, and goes in pieces of up to "
            f"{engine.trained_tokens}, of each of which this compressor would keep as many "
            "entries: give a ratio, or ask about a part of it."
        )
    if len(pieces) > 1 and engine.config.slot_form == "key_values":
        limit = engine.trained_tokens
        raise DataError(
            f"the context has {tokens} tokens, {tokens - limit} too many: slots kept as keys "
            f"and values hold at most {limit}{words_that_fit(text, tokens, limit)}. Ask about "
            "a part of it, or train a compressor with --config.slot_form=soft_tokens."
        )
    return pieces
