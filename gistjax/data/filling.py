"""Contexts filled up with other paragraphs; the gold paragraph is anywhere among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gistjax.data.example import Articles

JOINER = "\n\n"
JOINER_TOKENS = 2  # a joiner may add so many, those included that merge differently around it


class Filler:
    """Fills contexts from one split; the result depends on the seed and the gold paragraph only.

    Args:
        articles: all paragraphs of the split, by title.
        tokens: tokens of each paragraph alone.
        budget: tokens that the context may have.
        varied: fill up to a length that is drawn for each context, as likely to be in each octave
            between its paragraph's and the budget.
    """

    def __init__(
        self,
        articles: Articles,
        tokens: Mapping[str, int],
        budget: int,
        seed: int,
        varied: bool = False,
    ):
        self._articles, self._tokens, self._budget, self._seed = articles, tokens, budget, seed
        self._varied = varied
        self._all = list(dict.fromkeys(p for ps in articles.values() for p in ps))

    def length(self, gold: str, context_id: int) -> int:
        """Return the tokens that a context is filled up to, and cut at."""
        paragraph = self._cost(gold)
        if not self._varied or paragraph >= self._budget:
            return self._budget
        share = np.random.default_rng([self._seed, context_id, 1]).random()
        return int(paragraph * (self._budget / paragraph) ** share)

    def order(self, gold: str, title: str, context_id: int) -> tuple[list[str], int]:
        """Return the paragraphs of a filled context, and the gold one's index among them.

        Together they have at least the length, if the split has enough. All up to the end of the
        gold paragraph fits it, unless that alone is longer; the caller cuts the rest.
        """
        rng = np.random.default_rng([self._seed, context_id])
        fillers: list[str] = []
        before_gold: list[str] = []
        length = self.length(gold, context_id)
        total = self._cost(gold)
        room = length - total
        for paragraph in self._others(gold, title, rng):
            if total > length + JOINER_TOKENS * (len(fillers) + 1):
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
        """Yield the article's other paragraphs, then those of other articles, in seeded order."""
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
    """Return the text of a context."""
    return JOINER.join(paragraphs)
