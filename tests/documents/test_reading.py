"""Files of every kind as text."""

import logging
import os
import subprocess
import sys

import pytest

from gistjax.documents.pdf import paragraphs
from gistjax.documents.reading import Text, read_document, tidy
from tests.helpers.documents import docx, paragraph, pdf, pdf_with_picture

FRENCH = "L'été dernier, nous avons visité le château où la reine était née. Ça coûtait cher. " * 3
GERMAN = "Die Mühle wurde 1783 gebaut. Für Jäger und Füchse ist sie größer als das Häuschen. " * 3
ENGLISH = "It’s a “nice” mill – really. The owner had it built of oak in two years. " * 3
RUSSIAN = "Мельница была построена в 1783 году корабельным мастером. " * 3
WRAPPED = (
    "The mill was built in 1783 by the shipwright Anneke Dursel, who had\n"
    "lost her yard to a fire two winters before. It has three wheels.\n"
)
PAGE = """<!DOCTYPE html>
<html><head><title>The  mill &amp;
more</title><style>p {}</style><script>hide()</script></head>
<body><nav><a href="/">Home</a></nav><h1>The <b>mill</b></h1>
<p>It was built in <a href="http://localhost/x">1783</a>,
in <i>oak</i>. Snake_case * 2.<p>It has caf&eacute;s.
<ul><li>one<li>two</ul>
<table><tr><th>Wheel<th>Width<tr><td>first<td>2 m</table>
<pre>a  b
  c</pre><noscript>Switch it on.</noscript></body></html>"""
PAGE_TEXT = """# The mill

It was built in 1783, in oak. Snake_case * 2.

It has cafés.

- one
- two

| Wheel | Width |
| --- | --- |
| first | 2 m |

```
a  b
  c
```"""


@pytest.fixture
def read(tmp_path):
    """Reads bytes, or a text in UTF-8, as a file of some name."""

    def read(content, name="mill.txt", **limits):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_document(path, **limits)

    return read


def test_text_is_joined_where_it_was_wrapped_and_named_after_its_file(read):
    assert read(WRAPPED) == Text(WRAPPED.strip().replace("had\n", "had "), "mill")


def test_markdown_keeps_its_marks(read):
    text = "# Mill\n\n- one\n- **two**\n\n```\n  code\n```"
    assert read(text, "notes.md") == Text(text, "notes")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_says_the_encoding(read, encoding):
    assert read(f"{FRENCH}\r\n\r\nFin.".encode(encoding)).text == f"{FRENCH.strip()}\n\nFin."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(FRENCH, "cp1252"), (GERMAN, "latin-1"), (ENGLISH, "cp1252"), (RUSSIAN, "koi8-r")],
)
def test_an_encoding_is_found_out(read, text, encoding):
    assert read(text.encode(encoding)).text == text.strip()


@pytest.mark.parametrize("name", ["page.html", "page.txt"])
def test_a_page_is_its_text_without_navigation_and_scripts(read, name):
    assert read(PAGE, name) == Text(PAGE_TEXT, "The mill & more")


def test_a_page_is_told_by_its_name_where_its_content_does_not_say(read):
    assert read("<p>One<p>Two", "part.htm") == Text("One\n\nTwo", "part")
    assert read("<p>One<p>Two", "part.md").text == "<p>One<p>Two"


def test_a_page_may_declare_its_encoding(read):
    page = f"<html><meta charset=koi8-r><p>{RUSSIAN}"
    assert read(page.encode("koi8-r"), "page.html").text == RUSSIAN.strip()
    page = f"<html><meta charset=latin-1><p>{RUSSIAN}"  # wrong: it is UTF-8
    assert read(page, "page.html").text == RUSSIAN.strip()
    assert read(f"<html><p>{GERMAN}".encode("cp1252"), "page.html").text == GERMAN.strip()


def test_a_pdf_is_its_paragraphs(read):
    first = [
        "The mill was built in 1783 by the ship-",
        "wright Anneke Dursel, who had lost a yard",
        "to a fire.",
        "It has three wheels, and the Rhine-",
        "Main canal drives the largest of them.",
    ]
    found = read(pdf(first, ["A second page."]), "mill.pdf")
    assert found == Text(
        "The mill was built in 1783 by the shipwright Anneke Dursel, who had lost a yard to a "
        "fire.\n\nIt has three wheels, and the Rhine-Main canal drives the largest of them.\n\n"
        "A second page.",
        "mill",
    )


def test_a_pdf_by_another_name_is_read_by_its_content(read):
    assert read(pdf(["One line."]), "mill.txt").text == "One line."
    assert read(WRAPPED, "mill.pdf").text.startswith("The mill")


def test_a_pdf_that_opens_without_a_password_is_read(read):
    content = pdf(["One line."], user_password="", owner_password="b", algorithm="RC4-128")
    assert read(content, "mill.pdf").text == "One line."


def test_pages_of_pictures_among_others_are_named(read, caplog):
    with caplog.at_level(logging.WARNING):
        assert read(pdf_with_picture(["One line."]), "mill.pdf").text == "One line."
    assert "has 1 pages of pictures without text, the first is page 2" in caplog.text


def test_lines_of_tables_and_lists_stay():
    assert paragraphs("Wheel 2 m\nDoor 1 m\n\nStone 3 m\n") == "Wheel 2 m\nDoor 1 m\n\nStone 3 m"


def test_a_word_file_is_its_paragraphs_headings_and_tables(read):
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("Wheel", "2 m"))
    body = (
        paragraph("The mill", "Heading1")
        + paragraph("It was built in 1783.")
        + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"
    )
    style = (
        '<w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>'
        "</w:styles>"
    )
    found = read(docx(body, **{"word/styles.xml": style}), "mill.docx")
    assert found.text.startswith("# The mill\n\nIt was built in 1783.\n\n| Wheel | 2 m |")
    assert found.title == "mill"
    assert read(docx(paragraph("One.")), "mill.zip").text == "One."


def test_tidy_leaves_one_blank_line_and_no_stray_characters():
    assert tidy("a\xa0b \r\n \n\t\n\n  c\x00\x07\x1b\xad\ud800d\fe\n") == "a b\n\n  cd\n\ne"


def test_the_home_directory_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mill.txt").write_text("One.")
    assert read_document("~/mill.txt") == Text("One.", "mill")


def test_a_name_of_stray_bytes_and_lines_is_one_line_of_text(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff a\nb.txt")
    path.write_text("One.")
    assert read_document(path).title == "? a b"


@pytest.mark.slow
def test_the_parser_imports_no_jax():
    code = (
        "import sys, gistjax.documents.worker, gistjax.documents.pdf, gistjax.documents.docx\n"
        "print({'jax', 'numpy', 'torch', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
