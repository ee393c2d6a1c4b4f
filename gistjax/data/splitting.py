"""A text of any length as contexts of a length that a compressor was trained on."""

from __future__ import annotations

import re

import numpy as np

from gistjax.data.prompts import Prompt

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'’”)\]]*(?=\s)|(?=\n)")


def cut_text(text: str, prompt: Prompt, limit: int) -> list[np.ndarray]:
    """The text's token ids in pieces of at most `limit`, each cut off at the end of a sentence if it holds one.

    Each piece is tokenised alone, as the contexts of training are.
    """
    pieces, rest = [], text.strip()
    while rest:
        _, kept = prompt.encode_contexts([rest], limit)[0]
        if kept < len(rest):
            ends = [match.end() for match in _SENTENCE_END.finditer(rest, 0, kept)]
            kept = ends[-1] if ends and ends[-1] else kept
        ids = prompt.encode_context(rest[:kept])
        while len(ids) > limit:  # the limit falls within a character, or cutting changed the tokens
            kept -= 1
            ids = prompt.encode_context(rest[:kept])
        pieces.append(ids)
        rest = rest[kept:].strip()
    return pieces
