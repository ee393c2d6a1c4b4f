"""PDF as text: the lines of its pages, joined to paragraphs."""

from __future__ import annotations

import io
import re
import statistics

from pypdf import PasswordType, PdfReader
from pypdf.errors import DependencyError

from gistjax.errors import DataError

SHORT = 0.75
"""A line ends its paragraph if it is shorter than this part of the page's median line."""
LEAST_WIDTH = 25
"""Characters of a median line below which a page is a table or a list: its lines stay."""

_BROKEN_WORD = re.compile(r"(?<=[^\W\d_])-\n([^\W\d_])")


def read(content: bytes) -> dict[str, str]:
    """Return the `text` of a PDF, and a `warning` if some of its pages are pictures alone.

    Raises:
        DataError: if it is locked, has no pages, or has no text.
    """
    try:
        reader = PdfReader(io.BytesIO(content))
        # Some that only forbid printing are encrypted without a password.
        locked = reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED
        pages = [] if locked else [paragraphs(page.extract_text()) for page in reader.pages]
    except DependencyError:  # AES takes a package that we do without
        locked = True
    if locked:
        raise DataError(
            "is locked (encrypted): open it in a viewer and print it to a new PDF, or remove the "
            "password, as in qpdf --decrypt --password=… IN.pdf OUT.pdf."
        )
    bare = [n for n, page in enumerate(pages, 1) if not page]
    if len(bare) == len(pages):
        raise DataError(
            f"has no text in its {len(pages)} pages, they are pictures (a scan) or empty: run OCR "
            "first, as in ocrmypdf IN.pdf OUT.pdf."
        )
    found = {"text": "\n\n".join(filter(None, pages))}
    if scanned := [n for n in bare if reader.pages[n - 1].images]:
        found["warning"] = (
            f"has {len(scanned)} pages of pictures without text, the first is page {scanned[0]}: "
            "they are left out. Run OCR first to read them."
        )
    return found


def paragraphs(page: str) -> str:
    """Return the text of a page with the lines of its paragraphs joined, a blank line between.

    Words that are broken at the end of a line are made whole.
    """
    whole = _BROKEN_WORD.sub(lambda found: found[1] if found[1].islower() else f"-{found[1]}", page)
    lines = [line.strip() for line in whole.split("\n")]
    lengths = [len(line) for line in lines if line]
    width = statistics.median(lengths) if lengths else 0
    if width < LEAST_WIDTH:
        return "\n".join(lines).strip()
    parts = [line + (" " if len(line) >= SHORT * width else "\n\n") for line in lines]
    return re.sub(r" *\n\n\s*", "\n\n", "".join(parts)).strip()
