"""A user's file as text: plain text, Markdown, HTML, PDF or DOCX.

What a file is, its content says first and its name's ending second. UTF-8 text is read here; all
else is parsed in a process of its own (`worker.py`), within limits of time and memory, so that a
file that crashes or stalls its parser becomes an error, and the caller goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistjax.data.splitting import join_wrapped_lines
from gistjax.documents.kinds import kind_of
from gistjax.errors import DataError
from gistjax.runtime.texts import decode, unix_lines, user_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """What a file says: paragraphs with a blank line between them, and a title, one line.

    The title is that of an HTML page, or else the file's name without its ending.
    """

    text: str
    title: str


@dataclass(frozen=True)
class Limits:
    """What a file may take: its own bytes, and the seconds, memory and bytes of text of a parser.

    `seconds` are of computing and of the clock; `memory_bytes` are of address space.
    """

    file_bytes: int = 50_000_000
    seconds: float = 120
    memory_bytes: int = 2_000_000_000
    text_bytes: int = 100_000_000


LIMITS = Limits()


def read_document(path: str | Path, limits: Limits = LIMITS) -> Text:
    """Return the text of a file; wrapped lines are joined.

    Raises:
        DataError: if the file is missing, too large, locked, damaged or of another kind, has no
            text in it, or takes more than `limits`; the message is one line and names the file.
    """
    path = user_path(path)
    try:
        content = _read_bytes(path, limits.file_bytes)
        kind = kind_of(content, path.suffix.lower())
        found = {"text": decode(content)} if kind == "text" else _parse(content, kind, limits)
    except DataError as error:
        raise DataError(f"{str(path)!r} {error}") from error
    if "warning" in found:
        log.warning("%r %s", str(path), found["warning"])
    text = tidy(found["text"])
    if kind in ("text", "encoded"):  # of others, a parser knows what is a paragraph
        text = join_wrapped_lines(text)
    if not text:
        raise DataError(f"{str(path)!r} has no text in it: give a file that has.")
    name = path.stem.encode(errors="replace").decode()  # bytes that are no UTF-8 are `?`
    return Text(text, " ".join((tidy(found.get("title", "")) or name).split()))


def tidy(text: str) -> str:
    """Return a text without control characters and stray blanks, one blank line between paragraphs.

    Blanks at the beginning of a line stay; soft hyphens and halves of characters go.
    """
    text = unix_lines(text).encode(errors="ignore").decode().replace("\f", "\n\n")
    text = re.sub(r"[\0-\x08\x0b\x0e-\x1f\x7f\xad\ufeff]", "", text.replace("\xa0", " "))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _read_bytes(path: Path, limit: int) -> bytes:
    """Return a file's bytes, never waiting for a pipe or device."""
    try:
        with open(path, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError("is a device or pipe: give a file.")
            content = file.read(limit + 1)
    except IsADirectoryError as error:
        raise DataError("is a folder: give the files in it.") from error
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DataError("is a link to a file that is not there: give the file.") from error
        raise DataError("is not there: check the name.") from error
    except PermissionError as error:
        raise DataError("may not be read by you: change its permissions (chmod u+r).") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}): check the name.") from error
    except ValueError as error:
        raise DataError(f"is no name of a file ({error}): check it.") from error
    if len(content) > limit:
        size = max(status.st_size, len(content)) / 1e6
        raise DataError(
            f"has {size:,.1f} MB, more than the {limit / 1e6:,.0f} MB that are read: split it."
        )
    if not content:
        raise DataError("is empty: give a file that has text in it.")
    return content


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _parse(content: bytes, kind: str, limits: Limits) -> dict[str, str]:
    """Return what a process of its own finds in a file's bytes: `text`, perhaps more."""
    seconds = math.ceil(limits.seconds)
    numbers = (seconds, limits.memory_bytes, limits.text_bytes)
    command = [sys.executable, "-P", "-m", "gistjax.documents.worker", kind, *map(str, numbers)]
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    too_slow = f"takes longer than {limits.seconds:g} s to read: give a part of it, or its text."
    try:
        done = subprocess.run(
            command,
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
            timeout=limits.seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(too_slow) from error
    if done.returncode == -signal.SIGXCPU:
        raise DataError(too_slow)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise DataError(
            f"ended its parser (code {done.returncode}): it is damaged or takes more than "
            f"{limits.memory_bytes / 1e6:,.0f} MB of memory. Give its text as a text file."
        ) from error
    if "error" in found:
        raise DataError("".join(filter(str.isprintable, found["error"])))  # it may quote the file
    return found
