"""Word files as text: paragraphs, headings, lists and tables. Pictures and links are not opened."""

from __future__ import annotations

import io
import zipfile

import mammoth
from bs4 import BeautifulSoup

from gistjax.documents.html import to_text
from gistjax.errors import DataError

UNPACKED_BYTES = 200_000_000
"""Most bytes that the parts of a file may have when unpacked."""


def read(content: bytes) -> dict[str, str]:
    """Return the `text` of a Word file.

    Raises:
        DataError: if it is another archive, too large when unpacked, or damaged.
    """
    check_archive(content)
    page = mammoth.convert_to_html(io.BytesIO(content), convert_image=lambda _: [])
    return {"text": to_text(BeautifulSoup(page.value, "lxml"))}


def check_archive(content: bytes) -> None:
    """Refuse a ZIP archive that is no Word file, or unpacks to more than it should.

    Sizes are first those that are declared. `testzip` then unpacks every part, a piece at a time,
    as far as declared: one that is larger in truth fails its checksum.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(part.file_size for part in archive.infolist())
        if size > UNPACKED_BYTES:
            raise DataError(
                f"unpacks to {size / 1e6:,.0f} MB, more than {UNPACKED_BYTES / 1e6:,.0f} MB: it is "
                "no usual Word file. Save its text anew as DOCX or as a text file."
            )
        if "[Content_Types].xml" not in archive.namelist() or not any(
            name.startswith("word/") for name in archive.namelist()
        ):
            raise DataError(
                "is an archive, but no Word file (perhaps a spreadsheet, slides or a book): unpack "
                "it, or save it as PDF or DOCX."
            )
        if damaged := archive.testzip():
            raise DataError(f"is damaged (in its part {damaged!r}): save it anew as DOCX.")
