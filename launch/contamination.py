"""Find evaluation contexts in the text that compression is learned from.

    python -m launch.contamination --config.data.path=FOLDER --config.text.path=FOLDER [--words 13]

A paragraph of the validation split, drawn or not, is touched if it shares so many words in a row
with an article, case and punctuation aside (13 by default, as in Brown et al. 2020,
arXiv:2005.14165, appendix C). Prints how many are touched, and the longest run of words of the most
touched ones; a compressor that learned to repeat such paragraphs is not tested by them.
"""

from __future__ import annotations

import dataclasses
import logging
import re
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
_WORD = re.compile(r"\w+")

log = logging.getLogger(__name__)


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def longest_overlaps(contexts: Sequence[str], articles: Iterable[str], n: int) -> list[int]:
    """Return for each context the words in its longest piece found in articles; 0 for none.

    Every n words in a row of such a piece stand in some article.

    Args:
        n: pieces of fewer words do not count.
    """
    words = [words_of(context) for context in contexts]
    wanted = {gram for ws in words for gram in _grams(ws, n)}
    found: set[tuple[str, ...]] = set()
    for article in articles:
        found.update(wanted.intersection(_grams(words_of(article), n)))
    return [_longest([gram in found for gram in _grams(ws, n)], n) for ws in words]


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
