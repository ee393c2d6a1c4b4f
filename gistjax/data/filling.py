"""Contexts filled up to a number of tokens with other paragraphs, the gold paragraph anywhere among
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gistjax.data.example import Articles

JOINER = "\n\n"
JOINER_TOKENS = 2  # what a joiner may add, with the tokens that merge differently around it


class Filler:
    """Fills contexts from one split. A paragraph's filled context depends on the seed and the
    paragraph only.

    Args:
        articles: all paragraphs of the split, by title.
        tokens: tokens of each paragraph alone.
        budget: tokens that the context may have.
    """

    def __init__(self, articles: Articles, tokens: Mapping[str, int], budget: int, seed: int):
        self._articles, self._tokens, self._budget, self._seed = articles, tokens, budget, seed
        self._all = list(dict.fromkeys(p for ps in articles.values() for p in ps))

    def order(self, gold: str, title: str, context_id: int) -> tuple[list[str], int]:
        """Paragraphs of a filled context, and the gold one's index among them.

        They have at least the budget together, where the split has enough. What stands before and
        in the gold paragraph fits the budget, unless gold alone is longer; whatever follows is for
        the caller to cut.
        """
        rng = np.random.default_rng([self._seed, context_id])
        fillers: list[str] = []
        before_gold: list[str] = []
        total = self._cost(gold)
        room = self._budget - total
        for paragraph in self._others(gold, title, rng):
            if total > self._budget + JOINER_TOKENS * (len(fillers) + 1):
                break
            fillers.append(paragraph)
            total += self._cost(paragraph)
            if self._cost(paragraph) <= room:
                room -= self._cost(paragraph)
                before_gold.append(paragraph)
        place = int(rng.integers(len(before_gold) + 1))
        before = before_gold[:place]
        after = [p for p in fillers if p not in before]
        return [*before, gold, *after], place

    def _cost(self, paragraph: str) -> int:
        return self._tokens[paragraph] + JOINER_TOKENS

    def _others(self, gold: str, title: str, rng: np.random.Generator) -> Iterator[str]:
        """The article's other paragraphs, then those of other articles, in seeded order."""
        own: Sequence[str] = self._articles[title]
        for i in rng.permutation(len(own)):
            if own[i] != gold:
                yield own[i]
        yielded = {gold, *own}
        while len(yielded) < len(self._all):
            paragraph = self._all[int(rng.integers(len(self._all)))]
            if paragraph not in yielded:
                yielded.add(paragraph)
                yield paragraph


def join(paragraphs: Sequence[str]) -> str:
    """The context's text."""
    return JOINER.join(paragraphs)
