"""Scores by kind of answer, and by its place in the context."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gistjax.evaluation.statistics import clustered_bootstrap

PLACES = ("first", "middle", "last")

_DATE = re.compile(
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
    r"|(?<![\w.,$£€])(?:1\d{3}|20\d{2})(?![\w%]|[.,]\d)"
    r"|\b\d{1,4} (?:BCE?|CE|AD)\b|\bAD \d"
    r"|\b(?:\d\d)?\d0s\b"
    r"|(?:\d(?:st|nd|rd|th)|[Ff]irst|[Ss]econd|[Tt]hird|[a-z]th)[ -]centur(?:y|ies)\b"
)
_DIGIT = re.compile(r"\d")
_NUMBER_WORD = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    r"|(?:dozen|hundred|thousand|million|billion|trillion)s?|half|once|twice|per ?cent)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_][\w'’.-]*")
_FUNCTION_WORD = re.compile(
    r"(?:a|an|and|as|at|by|for|from|in|of|on|or|the|to|vs?|with|d[aeiu]|de[lrs]|el|la|le|van|von)\.?",
    re.IGNORECASE,
)


def answer_type(answer: str) -> str:
    """Return `date`, `number`, `name` or `other`: the first of these whose rule holds.

    date    has a month's name, a year from 1000 to 2099 (not "$1500", "1500%" or "1,500"), a year
            with its era ("541 CE"), a decade ("1990s") or a century ("19th century")
    number  has a digit, or at most four words with a number word ("about three", "five per cent")
            and is no name
    name    begins every word with a capital, except articles, conjunctions, prepositions and
            particles ("Leonardo da Vinci")
    """
    words = _WORD.findall(answer)
    content = [word for word in words if not _FUNCTION_WORD.fullmatch(word)]
    is_name = bool(content) and all(word[0].isupper() for word in content)
    counts = bool(_NUMBER_WORD.search(answer)) and len(words) <= 4
    if _DATE.search(answer):
        return "date"
    if _DIGIT.search(answer) or (counts and not (is_name and len(words) > 1)):
        return "number"
    return "name" if is_name else "other"


def answer_place(context: str, answer: str) -> str:
    """Return the third of the context in which the answer starts: `first`, `middle` or `last`.

    It is `absent` if the context does not have the answer. Case counts, the amount of white space
    does not. If the answer occurs as whole words, occurrences inside others ("4" in "1945") do not
    count.
    """
    text, wanted = " ".join(context.split()), " ".join(answer.split())
    if not wanted:
        return "absent"
    whole = re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text)
    start = whole.start() if whole else text.find(wanted)
    return "absent" if start < 0 else PLACES[3 * start // len(text)]


def breakdown(
    f1_N: ArrayLike, groups: Sequence[Any], clusters_N: ArrayLike, samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return the mean F1 of each group, in the order of their names.

    Args:
        clusters_N: the context of each value; the interval is clustered by it.
        groups: the group of each value.

    Returns:
        `{"n", "f1", "f1_interval"}` by group; the interval is one of 95 %.

    Raises:
        ValueError: if there is not one group and one cluster for each value.
    """
    values_N, names_N, clusters_N = np.asarray(f1_N), np.asarray(groups), np.asarray(clusters_N)
    if not values_N.shape == names_N.shape == clusters_N.shape:
        raise ValueError(
            f"f1 {values_N.shape}, groups {names_N.shape} and clusters {clusters_N.shape} "
            "must be [N]"
        )
    parts = {}
    for name in sorted(set(groups)):
        own_N = names_N == name
        interval = clustered_bootstrap(values_N[own_N], clusters_N[own_N], samples, seed)
        parts[str(name)] = {
            "n": int(own_N.sum()),
            "f1": float(values_N[own_N].mean()),
            "f1_interval": list(interval),
        }
    return parts
