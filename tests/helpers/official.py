"""The official SQuAD scores, written anew from the rules of the script of v2.0.

Lower case, ASCII punctuation out, `a`, `an` and `the` as whole words out, words apart by white
space; F1 of the bags of words, EM of the texts, the best over the gold answers; no common word is
0. Gold answers without a word do not count; without any other, no word is the right answer, and 1.
"""

from collections import Counter
from collections.abc import Sequence

ASCII_PUNCTUATION = {chr(c) for c in range(33, 127) if not chr(c).isalnum()}
ARTICLES = ("a", "an", "the")


def words(text: str) -> list[str]:
    """The normalised words of a text."""
    kept = "".join(c for c in text.lower() if c not in ASCII_PUNCTUATION)
    pieces, piece = [], ""
    for c in kept:  # runs of word characters, as Python's \w has them, and what stands between them
        if piece and (c.isalnum() or c == "_") != (piece[-1].isalnum() or piece[-1] == "_"):
            pieces.append(piece)
            piece = ""
        piece += c
    pieces.append(piece)
    return "".join(" " if piece in ARTICLES else piece for piece in pieces).split()


def official(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """F1 and EM, the best over the gold answers."""
    best_f1 = best_em = 0.0
    ours = words(prediction)
    for theirs in [words(gold) for gold in golds if words(gold)] or [[]]:
        best_em = max(best_em, float(" ".join(ours) == " ".join(theirs)))
        common = sum((Counter(ours) & Counter(theirs)).values())
        if not ours or not theirs:
            best_f1 = max(best_f1, float(ours == theirs))
        elif common:
            precision, recall = common / len(ours), common / len(theirs)
            best_f1 = max(best_f1, 2 * precision * recall / (precision + recall))
    return best_f1, best_em
