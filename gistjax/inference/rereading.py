"""Questions whose answers are unsure, asked again of the texts with every entry kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from numbers import Real
from typing import TYPE_CHECKING

from gistjax.errors import ConfigError
from gistjax.inference import asking
from gistjax.inference.document import Answer
from gistjax.inference.store_index import Piece

if TYPE_CHECKING:
    from gistjax.inference.engine import Engine

PIECES_AT_ONCE = 32
"""Pieces that are held whole, for a time: 32 of 512 tokens are 0.4 GB of a base of 135M."""


def check_reread(engine: Engine, below: float) -> None:
    """Refuse a score below which answers are to be given again.

    Raises:
        ConfigError: if it is none, or the compressor does not keep texts whole.
    """
    if isinstance(below, bool) or not isinstance(below, Real) or not 0 <= below <= 1:
        raise ConfigError(
            f"reread={below!r}: give the score below which the text is read again, from 0 "
            "(never) to 1."
        )
    try:
        engine.check_ratio(1.0)
    except ConfigError as error:
        raise ConfigError(f"reread keeps every token, ratio 1, but: {error}") from error


def read_again(
    engine: Engine,
    asked: Sequence[tuple[Sequence[Piece], str]],
    threshold: float | None,
    told: Callable[[int, Answer], None],
) -> None:
    """Answer questions from pieces' texts, of which every entry is kept for as long as that takes.

    Args:
        asked: pieces and question.
        threshold: as in `Engine.ask`.
        told: called with the place and the answer of each question.
    """
    most = max((len(pieces) for pieces, _ in asked), default=1)
    step = max(PIECES_AT_ONCE // most, 1)
    for first in range(0, len(asked), step):
        batch = asked[first : first + step]
        texts = {piece.key: piece.text for pieces, _ in batch for piece in pieces}
        encode = engine.pretrained.prompt.encode_context
        ids = [(key, encode(text)) for key, text in texts.items()]
        read = dict(chain.from_iterable(engine.compress_pieces(ids, 1.0)))
        pairs = [
            (engine.join([read[piece.key] for piece in pieces]), question)
            for pieces, question in batch
        ]
        for place, answer in enumerate(asking.ask(engine, pairs, threshold), first):
            told(place, answer)
