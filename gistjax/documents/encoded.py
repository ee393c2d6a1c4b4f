"""Text in another encoding than UTF-8, if it is certain which."""

from __future__ import annotations

from charset_normalizer import from_bytes

from gistjax.errors import DataError

WESTERN = "cp1252"
"""Taken where others are as likely: Windows-1252, which Latin-1 is part of."""


def read(content: bytes) -> dict[str, str]:
    """Return the `text` of bytes in an encoding that is guessed from them."""
    return {"text": decode_guessed(content)}


def decode_guessed(content: bytes) -> str:
    """Return the text of bytes in a guessed encoding.

    It is certain if those that fit best give one text, or are Western and of a known language.

    Raises:
        DataError: if it is not certain.
    """
    matches = from_bytes(content)
    best = matches.best()
    if best is not None:
        score = (best.chaos, best.coherence)
        likely = [match for match in matches if (match.chaos, match.coherence) == score]
        western = [match for match in likely if WESTERN in match.could_be_from_charset]
        if len({str(match) for match in likely}) == 1 or (western and best.coherence > 0):
            return str((western or likely)[0])
    raise DataError(
        "is not UTF-8, and it is not certain what it is: save it as UTF-8, as in iconv -f cp1252 "
        "-t utf-8 for text from Western Windows."
    )
