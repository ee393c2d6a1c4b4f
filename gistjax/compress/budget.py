"""The number of slots that a context gets: the one place where tokens become slots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gistjax.config import SELECT, CompressionConfig

EXACT = 1 - 1e-6
"""Factor of a quotient before it is rounded up: 21 tokens at 2.1 are 10 slots, although the floats'
quotient is 10.000001 on one device and 10 on another."""
UNLIMITED = 2**30


@dataclass(frozen=True)
class Budget:
    """⌈tokens / ratio⌉ slots, at most M; without a ratio one a token, at most M.

    Entries that are kept of the cache have room at any ratio: there M counts without one alone.
    """

    most: int  # M
    ratio: float = 0.0  # context tokens a slot; 0 sets none
    ratios: tuple[float, ...] = ()  # ascending; training draws one of them for each context
    context_tokens: int = 0  # of the longest context
    architecture: str = ""
    selects: bool = False  # a control reads as many tokens as there would be slots
    bytes: int = 0  # that a context's entries may take, in place of a ratio

    @classmethod
    def of(cls, config: CompressionConfig) -> Budget:
        """The budget that a configuration sets."""
        return cls(
            config.target_length,
            config.ratio,
            config.ratios,
            config.data.context_tokens,
            config.architecture,
            config.data.select != "all",
            config.select.bytes,
        )

    def at(self, ratio: float) -> Budget:
        """The same with another number of tokens a slot."""
        return replace(self, ratio=ratio)

    @property
    def least_ratio(self) -> float:
        """The least of the ratios that training draws: what there has to be room for."""
        return min(self.ratios, default=self.ratio)

    def slots(self, length: Any, ratio: Any = None) -> Any:
        """Slots that contexts of so many tokens use.

        Args:
            length: a number, or an array of numpy or JAX.
            ratio: of each context, where training drew one; by default the configured one.
        """
        xp: Any = length.__array_namespace__() if hasattr(length, "__array_namespace__") else np
        fixed = ratio is None and not self.ratio
        most = UNLIMITED if self.architecture == SELECT and not fixed else self.most
        if ratio is None:
            ratio = self.ratio or 1
            if ratio == int(ratio):  # exact: XLA divides by a constant inexactly
                return xp.minimum(-(-length // int(ratio)), most)
        return xp.minimum(xp.ceil(length / ratio * EXACT).astype(xp.int32), most)

    def room(self, tokens: int, drawn: bool = False) -> int:
        """Slots M that contexts padded to so many tokens need.

        Args:
            drawn: each context draws its ratio, so that there is room for the least.
        """
        ratio = self.least_ratio if drawn else self.ratio
        return min(math.ceil(tokens / (ratio or 1) * EXACT), self.most)

    def decoder_positions(self, tokens: int) -> int:
        """Positions between prefix and question that a padded context takes in training."""
        return {"none": tokens, SELECT: tokens, "closed_book": 0}.get(
            self.architecture, self.room(tokens, drawn=True)
        )

    @property
    def nominal_ratio(self) -> float | None:
        """Tokens of the longest context over slots, or over the tokens that a control selects.

        1 where the whole context is read, or none of it; None where bytes are the budget.
        """
        if self.bytes:
            return None
        if self.architecture == "closed_book" or (self.architecture == "none" and not self.selects):
            return 1.0
        if self.architecture == SELECT and self.ratio:
            return self.ratio
        return max(self.ratio, self.context_tokens / self.most)

    def ratio_problem(self, ratio: float) -> str:
        """Say why a compressor with this budget was not trained at a ratio; empty if it was."""
        trained = self.ratios or (self.ratio,)
        if self.architecture in ("none", "closed_book"):
            return f"ratio={ratio:g}: this model has no number of tokens a slot to set."
        if self.bytes and ratio:
            return (
                f"ratio={ratio:g}: this model keeps {self.bytes} bytes of entries of any context "
                "(select.bytes). Leave the ratio out."
            )
        if self.architecture == SELECT and (self.bytes or not self.ratios):
            return ""  # what chooses entries is not trained, and neither is the cut
        if trained[0] == 0:
            return (
                f"ratio={ratio:g}: this compressor has {self.most} slots for any context. "
                "Leave the ratio out."
            )
        if trained[0] <= ratio <= trained[-1]:
            return ""
        known = " to ".join(f"{end:g}" for end in dict.fromkeys((trained[0], trained[-1])))
        what = "an entry" if self.architecture == SELECT else "a slot"
        return f"ratio={ratio:g}: this compressor was trained with {known} tokens {what}."


def keeping_all(config: CompressionConfig) -> CompressionConfig:
    """Return a configuration of kept entries with a budget for all of them."""
    return replace(config, ratio=1.0, select=replace(config.select, bytes=0))


def is_full_context(settings: Mapping[str, Any]) -> bool:
    """Whether a run was trained with whole contexts: without slots, or with all entries kept.

    Args:
        settings: by dotted key (`walk`), as in `config.json`; older runs lack some.
    """
    architecture = settings.get("architecture")
    if architecture == "none":
        return bool(settings.get("data.select", "all") == "all")
    ratios = {settings.get("ratio"), *(settings.get("ratios") or ())}
    return architecture == SELECT and ratios == {1.0}
