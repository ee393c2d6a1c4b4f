"""Arguments of command lines: paths, and overrides `--config.KEY=VALUE` of tuples."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.runtime.texts import user_path
from gistjax.settings import walk

OVERRIDE = r"--?config\.([^=]*)"


class _PathParser(flags.ArgumentParser[str]):
    """Takes a path as people write it; none of only blanks."""

    def parse(self, argument: str) -> str:
        """Return the path as the system takes it."""
        return tidy_path(argument)


def tidy_path(name: str) -> str:
    """Return `user_path` as text, and "" for a name of blanks."""
    return str(user_path(name)) if name.strip() else ""


def define_path(
    name: str, default: str, about: str, values: flags.FlagValues, many: bool = False
) -> None:
    """Define a flag that takes a path, or several if it is repeated."""
    parser = _PathParser()
    serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    if many:
        start = [default] if default else []
        flags.DEFINE_multi(parser, serializer, name, start, about, values)
    else:
        flags.DEFINE(parser, name, default, about, values, serializer)


def path_flags(values: flags.FlagValues) -> list[str]:
    """Return the names of the flags that take a path, in the order in which they were defined."""
    return [name for name in values if isinstance(values[name].parser, _PathParser)]


def plain_overrides(argv: list[str]) -> list[str]:
    """Return a command line with the last override of each key alone, tuples as ml_collections
    takes them.

    It would join the values of a tuple that is given twice.
    """
    words = list(_with_values(argv))
    matches = [re.match(f"{OVERRIDE}=", word) for word in words]
    last = {match[1]: i for i, match in enumerate(matches) if match}
    return [
        _plain(word, match)
        for i, (word, match) in enumerate(zip(words, matches, strict=True))
        if match is None or last[match[1]] == i
    ]


def _with_values(argv: list[str]) -> Iterator[str]:
    """Yield the words, a tuple's key and its value in the next word joined."""
    words = iter(argv)
    for word in words:
        match = re.fullmatch(OVERRIDE, word)
        value = next(words, None) if match and match[1] in _tuples() else None
        yield word if value is None else f"{word}={value}"


def _plain(word: str, match: re.Match[str] | None) -> str:
    if match is None or match[1] not in _tuples():
        return word
    return f"{match[0]}{read_tuple(word[match.end() :])!r}"


def _tuples() -> set[str]:
    return {name for name, value, _ in walk(CompressionConfig()) if isinstance(value, tuple)}


def read_tuple(text: str) -> tuple[Any, ...]:
    """Return the values of a tuple in any of its spellings.

    >>> read_tuple("q,v"), read_tuple('["q", "v"]'), read_tuple("(2.0, 4)"), read_tuple("8")
    (('q', 'v'), ('q', 'v'), (2.0, 4), (8,))
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        inner = text.strip().strip("()[]").split(",")
        parts = [part.strip().strip("\"'") for part in inner]
        return tuple(part for part in parts if part)
    return tuple(value) if isinstance(value, list | tuple) else (value,)
