"""What a file is: told by its content first, by the ending of its name second."""

from __future__ import annotations

import re

from gistjax.errors import DataError
from gistjax.runtime.texts import decode

REFUSED = {
    b"\xd0\xcf\x11\xe0": "is an old Word file (.doc) or one locked with a password: save it as "
    "DOCX without a password.",
    b"{\\rtf": "is an RTF file: save it as DOCX or PDF.",
}
"""First bytes of what is not read, and what to do instead."""

_HTML = re.compile(
    rb"(?><\?xml[^>]*>|<!--.*?-->|\s)*+<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
"""The beginning of a page. Nothing is tried twice: comments could be divided in many ways."""
_HEAD = 1024
"""Bytes within which a PDF's mark may stand behind others."""


def kind_of(content: bytes, suffix: str) -> str:
    """Return `text` (UTF-8, or UTF-16 or 32 with a mark), `encoded`, `html`, `pdf` or `docx`.

    Args:
        suffix: the ending of the file's name in lower case, with its dot.

    Raises:
        DataError: if it is something else.
    """
    head = content[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"%PDF-") or (suffix == ".pdf" and b"%PDF-" in head):
        return "pdf"
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "docx"
    for mark, problem in REFUSED.items():
        if content.startswith(mark):
            raise DataError(problem)
    try:
        has_zeros, kind = "\0" in decode(content), "text"
    except UnicodeDecodeError:
        has_zeros, kind = b"\0" in content, "encoded"
    if has_zeros and suffix == ".pdf":
        raise DataError("is no PDF, or a damaged one: save it anew, or name it by what it is.")
    if has_zeros:
        raise DataError(
            "is no text (it has zero bytes in it: an image, a program, a damaged file, or UTF-16 "
            "without a mark): give a text in UTF-8, or Markdown, HTML, PDF or DOCX."
        )
    return "html" if _HTML.match(head) or suffix in (".html", ".htm", ".xhtml") else kind
