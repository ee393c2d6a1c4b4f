"""Find evaluation contexts in the text that compression is learned from.

    python -m launch.contamination --config.data.path=FOLDER --config.text.path=FOLDER [--words 13]

A paragraph of the validation split, drawn or not, is touched if it shares so many words in a row
with an article (13 by default, as in Brown et al. 2020, arXiv:2005.14165, appendix C), or if it is
shorter and an article has all of it. Words are compared without case, punctuation, accents' form,
ligatures and invisible characters; where writing has no spaces (Chinese, Japanese, Thai, Lao,
Burmese, Khmer, Tibetan), each character is a word.

Prints how many are touched, and the longest run of words of the most touched ones; a compressor
that learned to repeat such paragraphs is not tested by them. Not seen are other spellings,
translations and paraphrases, and paragraphs without a word, which are counted as `unchecked`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from gistjax.config import CompressionConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.report import DataReport
from gistjax.data.text import load_articles
from gistjax.errors import ConfigError
from gistjax.runtime import cli

SHOWN = 10
UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Tibetan, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese
)
"""Characters of writing without spaces between words."""

log = logging.getLogger(__name__)


def words_of(text: str) -> list[str]:
    """Return a text's words without what is written in several ways: case, punctuation, marks."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
        text = unicodedata.normalize("NFKC", text).translate(_invisible())
    return _word().findall(text.lower())


@functools.cache
def _word() -> re.Pattern[str]:
    """Match a word: letters, digits and vowel signs, or one of them in `UNSPACED`."""
    letter = f"[^\\W_{UNSPACED}]|[{''.join(_characters('Mc'))}]"
    return re.compile(f"(?:{letter})+|(?![\\W_])[{UNSPACED}]")


@functools.cache
def _invisible() -> dict[int, str]:
    """Characters that change how others look, or nothing: marks, soft hyphens, joiners.

    Apostrophes that count as letters part words as others do.
    """
    apostrophes = dict.fromkeys(range(0x2B9, 0x2C0), "'")
    return dict.fromkeys(map(ord, _characters("Mn", "Me", "Cf")), "") | apostrophes


def _characters(*categories: str) -> list[str]:
    every = map(chr, range(sys.maxunicode + 1))
    return [character for character in every if unicodedata.category(character) in categories]


def longest_overlaps(contexts: Sequence[str], articles: Iterable[str], n: int) -> list[int]:
    """Return for each context the words in its longest piece found in articles; 0 for none.

    Every n words in a row of such a piece stand in some article; of a context of fewer words, all.

    Args:
        n: pieces of fewer words do not count.
    """
    words = [words_of(context) for context in contexts]
    sizes = [min(n, len(ws)) for ws in words]
    wanted: dict[int, set[tuple[str, ...]]] = {size: set() for size in sizes if size}
    for ws, size in zip(words, sizes, strict=True):
        if size:
            wanted[size].update(_grams(ws, size))
    found: set[tuple[str, ...]] = set()
    for article in articles:
        theirs = words_of(article)
        for size, grams in wanted.items():
            found.update(grams.intersection(_grams(theirs, size)))
    return [
        _longest([gram in found for gram in _grams(ws, size)], size)
        for ws, size in zip(words, sizes, strict=True)
    ]


def _grams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _longest(hits: list[bool], n: int) -> int:
    """Return the number of words covered by the longest run of hits."""
    best = run = 0
    for hit in hits:
        run = run + 1 if hit else 0
        best = max(best, run)
    return best + n - 1 if best else 0


def main(config: CompressionConfig, args: flags.FlagValues) -> None:
    """Count and print the touched paragraphs.

    Raises:
        ConfigError: if no text is named.
    """
    if not config.text.path:
        raise ConfigError(
            "which text? Give the folder that was trained on, as --config.text.path=FOLDER."
        )
    report = DataReport()
    data = dataclasses.replace(config.data, train_examples=0, validation_examples=-1)
    articles = load_dataset(data, config.seed).validation_articles
    contexts = [paragraph for paragraphs in articles.values() for paragraph in paragraphs]
    read = load_articles(config.text.path, report, config.data.max_dropped)
    overlaps = longest_overlaps(contexts, read, args.words)
    log.info("%s", report)
    touched = sum(overlap > 0 for overlap in overlaps)
    worst = sorted(zip(overlaps, contexts, strict=True), reverse=True)[:SHOWN]
    found: dict[str, Any] = {
        "words_in_a_row": args.words,
        "contexts": len(contexts),
        "unchecked": sum(not words_of(context) for context in contexts),
        "touched": touched,
        "share": touched / len(contexts),
        "most": [{"words": overlap, "context": context} for overlap, context in worst if overlap],
    }
    cli.print_result(found)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    flags.DEFINE_integer(
        "words", 13, "Words in a row that make an overlap.", lower_bound=1, flag_values=values
    )


if __name__ == "__main__":
    cli.run(main, define_flags, lambda argv: CompressionConfig())
