"""Words of questions and answers, and where they stand in a text."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a about an and are as at be been but by can could did do does for from had has have he "
        "her his how i if in is it its many me much my of on or our she so some that the their "
        "them there they this to was we were what when where which who whom whose why will with "
        "would you your s t d ll re ve m"
    )
)
"""Words of English by which no text is found, unless a question has no others."""


def words_of(question: str) -> list[str]:
    """Return the words by which a question's text is found, as they are written."""
    every = dict.fromkeys(_WORD.findall(question))
    return [word for word in every if word.casefold() not in FUNCTION_WORDS] or list(every)


def place_in(text: str, answer: str) -> int:
    """Return where an answer stands in a text whose white space is single blanks; -1: nowhere."""
    words = " ".join(answer.casefold().split())
    return " ".join(text.casefold().split()).find(words) if words else -1
