"""A text of any length made ready to compress: wrapped lines joined, cut to trained lengths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gistjax.data.prompts import Prompt

CHARACTERS_PER_TOKEN = 32
"""More than any text has on average: a longer text need not be tokenised to be too long."""
SHORTEST_WIDTH, LONGEST_WIDTH = 50, 120
"""Characters. Text is wrapped at some width in this range; other lines are broken on purpose."""
WRAPPED_SHARE = 0.75
"""Least share of a paragraph's line breaks that a wrapper would have made."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'’”)\]]*(?=\s)|(?=\n)")
_GAP = re.compile(r"(\n(?:[ \t]*\n)+)")  # between paragraphs
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.M)
_ITEM = re.compile(r" *(?:[-*+•–]|\(?(?:\d{1,3}|[A-Za-z])[.):]) +\S")  # of a list
_NOT_PROSE = re.compile(
    r"[{}|\t]"  # code, tables
    r"|\S {3,}\S"  # columns
    r"|[;(\[\\] *$| [-+*/!<>=]?= |[-=]>|::|\): *$"  # code
    r"|^ *[\w.]+\(.*\)$|^ *(?:from \S+ )?import \S"  # calls, imports
    r"|^ *(?:#|//|>|\$ |@|\.\. |[-=~]{3,} *$)",  # headings, comments, quotations, prompts
    re.M,
)


def join_wrapped_lines(text: str) -> str:
    """Return a text with the lines of its hard-wrapped paragraphs joined by spaces.

    A line break counts as wrapped if the next line's first word would not have fitted on the line.
    Only those are joined, in paragraphs that mostly consist of them; blank lines, lists, tables,
    verse and code keep their line breaks, as far as they can be told from wrapped prose.
    """
    if _FENCE.search(text):  # text and code alternate
        parts = re.split(
            r"(^[ \t]*(?:```|~~~).*?(?:^[ \t]*(?:```|~~~)|\Z))", text, flags=re.M | re.S
        )
        return "".join(part if i % 2 else _join_paragraphs(part) for i, part in enumerate(parts))
    return _join_paragraphs(text)


def _join_paragraphs(text: str) -> str:
    parts = _GAP.split(text.replace("\r\n", "\n"))
    return "".join(part if i % 2 else _join_paragraph(part) for i, part in enumerate(parts))


def _join_paragraph(paragraph: str) -> str:
    lines = paragraph.split("\n")
    width = max(map(len, lines))
    if not SHORTEST_WIDTH <= width <= LONGEST_WIDTH or _NOT_PROSE.search(paragraph):
        return paragraph
    inner = [i for i in range(1, len(lines)) if lines[i].strip() and not _ITEM.match(lines[i])]
    wrapped = {i for i in inner if _is_full(lines[i - 1], lines[i], width)}
    if len(wrapped) < WRAPPED_SHARE * len(inner) or not _is_aligned(lines, inner):
        return paragraph
    parts = [lines[0]]
    for i, line in enumerate(lines[1:], 1):
        if i in wrapped:
            before = parts[-1] = parts[-1].rstrip()
            is_hyphenated = len(before) > 1 and before[-1] == "-" and before[-2].isalpha()
            parts += ["" if is_hyphenated else " ", line.lstrip()]
        else:
            parts += ["\n", line]
    return "".join(parts)


def _is_full(line: str, following: str, width: int) -> bool:
    """Return whether the next line's first word would have made the line too long."""
    return len(line.rstrip()) + 1 + len(following.split(maxsplit=1)[0]) > width


def _is_aligned(lines: Sequence[str], inner: Sequence[int]) -> bool:
    """Return whether lines start at one column, but for a list's items and an indented first."""
    indents = [len(line) - len(line.lstrip()) for line in lines]
    known = set(inner)
    for i in inner:
        if i - 1 in known and indents[i] != indents[i - 1]:
            return False
        if i == 1 and not _ITEM.match(lines[0]) and indents[1] > indents[0]:
            return False
    return True


class Cut(NamedTuple):
    """A part of a text, and its tokens."""

    text: str
    ids: np.ndarray


def cut_text(text: str, prompt: Prompt, limit: int) -> list[Cut]:
    """Return a text in pieces of at most `limit` tokens.

    A piece ends with a sentence if it holds the end of one. Each is tokenised alone, as the
    contexts of training are.
    """
    pieces, rest = [], text.strip()
    while rest:
        ahead = rest[: CHARACTERS_PER_TOKEN * limit]  # a long text is not tokenised for each piece
        _, kept = prompt.encode_contexts([ahead], [limit])[0]
        if kept < len(rest):
            ends = [match.end() for match in _SENTENCE_END.finditer(rest, 0, kept)]
            kept = ends[-1] if ends and ends[-1] else kept
        piece = rest[:kept].strip()
        ids = prompt.encode_context(piece)
        while len(ids) > limit:  # the limit falls within a character, or cutting changed the tokens
            kept -= 1
            piece = rest[:kept].strip()
            ids = prompt.encode_context(piece)
        pieces.append(Cut(piece, ids))
        rest = rest[kept:].strip()
    return pieces
