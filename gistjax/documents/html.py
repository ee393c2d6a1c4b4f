"""HTML as text with the marks of Markdown for headings, lists and tables. No link is followed."""

from __future__ import annotations

from bs4 import BeautifulSoup
from bs4.dammit import EncodingDetector
from markdownify import MarkdownConverter

from gistjax.documents.encoded import decode_guessed
from gistjax.errors import DataError
from gistjax.runtime.texts import decode

_UNREAD = ("button", "iframe", "nav", "noscript", "script", "select", "style", "svg", "template")
"""Elements that are no part of a page's text, as its title is not."""
_PLAIN = ("a", "b", "code", "del", "em", "i", "img", "kbd", "s", "samp", "strong", "video")
"""Elements of which the text alone is kept."""


def read(content: bytes) -> dict[str, str]:
    """Return the `text` and `title` of a page.

    Raises:
        DataError: if there is no text in it, or its encoding is neither given nor certain.
    """
    soup = BeautifulSoup(_decode(content), "lxml")
    title = soup.title.get_text() if soup.title else ""
    text = to_text(soup)
    if not text.strip():
        raise DataError(
            "is a page without text, such as one that a script fills in: open it in a browser and "
            "print it to PDF."
        )
    return {"text": text, "title": title}


def to_text(soup: BeautifulSoup) -> str:
    """Return the text of a parsed page; what is not read is taken out of it."""
    for element in soup([*_UNREAD, "title"]):
        element.decompose()
    converter = MarkdownConverter(
        strip=[*_PLAIN],
        heading_style="atx",
        bullets="-",
        table_infer_header=True,
        escape_asterisks=False,
        escape_underscores=False,
        wrap=True,  # line breaks in the source are blanks
        wrap_width=None,
    )
    return str(converter.convert_soup(soup))


def _decode(content: bytes) -> str:
    try:
        return decode(content)
    except UnicodeDecodeError:
        pass
    try:
        declared = EncodingDetector.find_declared_encoding(content, is_html=True)
        return content.decode(declared or "", errors="replace")
    except LookupError:
        return decode_guessed(content)
