"""Text from outside as every reader takes it, and the paths that people write.

A mark at the beginning says that a text is UTF-16 or UTF-32; without one it is UTF-8. The mark is
no part of the text, and lines end with `\\n`, wherever the text is from: one text has one
tokenisation.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gistjax.errors import ConfigError, DataError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the names of their encodings."""


def user_path(name: str | Path) -> Path:
    """Return the path that a person gave: without blanks around it, `~` as the home directory.

    Raises:
        ConfigError: if it is no path.
    """
    if not isinstance(name, str | os.PathLike):
        kind = type(name).__name__
        raise ConfigError(f"a file or folder must be given as text or a path, not {kind}.")
    return Path(os.path.expanduser(str(name).strip()))


def unix_lines(text: str) -> str:
    """Return a text whose lines end with a line feed alone, and without a mark at its beginning."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def decode(content: bytes) -> str:
    """Return the text of a file's bytes.

    Raises:
        UnicodeDecodeError: if they are none in the encoding that their mark says, or in UTF-8.
    """
    return unix_lines(content.decode(_encoding(content)))


def _encoding(beginning: bytes) -> str:
    return next((name for mark, name in MARKS if beginning.startswith(mark)), "utf-8")


def not_text(name: Any, error: UnicodeError) -> str:
    """Return the message on bytes that are no text."""
    return (
        f"{name} is not UTF-8 text ({error}), nor UTF-16 or UTF-32 with a mark: convert it first "
        "(iconv -f latin1 -t utf-8 for Latin-1, pdftotext for PDF)."
    )


@contextlib.contextmanager
def text_lines(stream: Any, errors: str = "strict") -> Iterator[IO[str]]:
    """Read a binary stream as text, line by line; it is left open.

    Args:
        errors: what becomes of bytes that are no text, as in `open`.
    """
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    lines = io.TextIOWrapper(buffered, encoding=_encoding(buffered.peek(4)[:4]), errors=errors)
    try:
        yield lines
    finally:
        with contextlib.suppress(ValueError):  # closed by then
            lines.detach()


@contextlib.contextmanager
def read_lines(stream: IO[str]) -> Iterator[IO[str]]:
    """Read standard input line by line, in the encoding that its mark says, or UTF-8.

    Raises:
        DataError: if it is neither.
    """
    try:
        if hasattr(stream, "buffer"):
            with text_lines(stream.buffer) as lines:
                yield lines
        else:  # a stand-in
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(not_text("standard input", error)) from error


def tolerate_terminals() -> None:
    """Let standard output and error escape what a terminal cannot show, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def as_typed(line: str) -> str:
    """Return a line from the keyboard, also where the terminal says that it is ASCII."""
    with contextlib.suppress(UnicodeError):
        return line.encode(sys.stdin.encoding or "utf-8", "surrogateescape").decode("utf-8")
    return line


def shown(text: str, ascii_text: str) -> str:
    """Return a text, or the other one where standard output cannot show it."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return ascii_text
    return text
