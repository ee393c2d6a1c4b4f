"""Where rows come from: the files of a folder, under the names that they have, or the hub."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from gistjax.config import DataConfig
from gistjax.errors import DataError
from gistjax.runtime.logs import quiet_hub
from gistjax.runtime.texts import not_text, text_lines, user_path

log = logging.getLogger(__name__)

SQUAD = DataConfig().name
"""The hub's data set that a configuration has if it says nothing else."""


class BrokenLine(NamedTuple):
    """A line of JSON Lines that is no JSON. Tasks hand it on as it is, to be counted."""

    number: int  # from 1


class Source(NamedTuple):
    """The rows of a split, as they were found, and the name that messages call them by."""

    name: str
    rows: Iterable[Any]


@dataclass(frozen=True)
class Hub:
    """A data set of the hub: its name, its part, and what its validation split is called."""

    name: str
    part: str = ""
    validation: str = "validation"

    def rows(self, data: DataConfig, split: str) -> Source:
        """Return the rows of a split, by the `datasets` library and its cache.

        A `data.name` that was given goes before this one; it may be called by a part of the name:
        `openai/gsm8k:main`.

        Raises:
            DataError: if they cannot be read.
        """
        import datasets  # slow to import, and only the hub needs it

        given, _, given_part = data.name.partition(":")
        name, part = (self.name, self.part) if data.name == SQUAD else (given, given_part)
        found = self.validation if split == "validation" and name == self.name else split
        log.info("asking the hub for %s (%s) …", name, found)  # it tries for half a minute
        try:
            with quiet_hub():
                rows = datasets.load_dataset(*filter(None, (name, part)), split=found)
        except Exception as error:  # many kinds: offline, gated, unknown, no such split
            cause = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise DataError(
                f"the hub's data set {name} ({found}) cannot be fetched: {cause[0]}. Without the "
                "hub, give a folder with the task's files (--config.data.path=FOLDER; docs/data.md "
                "names them); of SQuAD, sample is enough (--config.data.path=sample)."
            ) from None
        return Source(f"{name} ({found})", cast(Iterable[Any], rows))


def find_file(data: DataConfig, names: Sequence[str], about: str) -> Path:
    """Return the first file of these names in the folder `data.path`.

    Args:
        about: what the folder should have, for the message.

    Raises:
        DataError: if there is none.
    """
    files = [user_path(data.path) / name for name in names]
    for file in files:
        if file.is_file():
            return file
    folder = user_path(data.path)
    if folder.is_dir():
        *others, last = names
        missing = f"{folder} has no {', no '.join(others)} and no {last}"
    else:
        missing = f"{folder} is a file" if folder.is_file() else f"there is no folder {folder}"
    raise DataError(f"{missing}: --config.data.path takes a folder with {about}.")


def read_file(file: Path) -> Source:
    """Return the values in a file of JSON Lines (`.jsonl`, `.jsonl.gz`), or in a JSON list.

    Raises:
        DataError: if it is no such file; of lines later, while rows are taken.
    """
    if file.suffix != ".json":
        return Source(str(file), json_lines(file))
    rows = read_json_file(file)
    if not isinstance(rows, list):
        raise DataError(f"{file} is no list of questions: is it the data of another task?")
    return Source(str(file), rows)


def read_json_file(file: Any) -> Any:
    """Return the value of a JSON file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return json.loads(file.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(not_text(file, error)) from error
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read as JSON ({error}): is it damaged or cut short?"
        ) from error


def json_lines(file: Path) -> Iterator[Any]:
    """Yield the value of each line that is not blank; of one that is no JSON, its number.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with (
            gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream,
            text_lines(stream) as lines,
        ):
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield BrokenLine(number)
    except UnicodeError as error:
        raise DataError(not_text(file, error)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read ({error}): is it damaged or cut short?") from error


def line_files(split: str) -> tuple[str, str]:
    """Return the names of a split's JSON Lines."""
    return f"{split}.jsonl", f"{split}.jsonl.gz"


def items(parent: Any, key: str) -> list[Any]:
    """Return the list under a key; without one, a stand-in that is counted as malformed."""
    found = parent.get(key) if isinstance(parent, dict) else None
    return found if isinstance(found, list) else [None]
