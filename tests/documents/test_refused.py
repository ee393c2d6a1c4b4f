"""What is no readable file ends in one line that names it, its cause and its cure."""

import os
import re
import struct
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gistjax.documents import docx as docx_module
from gistjax.documents.reading import Limits, Text, read_document
from gistjax.errors import DataError
from tests.helpers.documents import archive, docx, paragraph, pdf, pdf_with_picture

LOCKED = {"user_password": "a", "algorithm": "RC4-128"}
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0"
SCRIPT = "<!DOCTYPE html><html><title>App</title><body><div id=app></div><script>run()</script>"
DEEP = 20_000
BODY = paragraph("The mill was built in 1783.") * 5


def refusal(path, **more):
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(DataError) as caught:
        read_document(path, **more)
    message = str(caught.value)
    assert message.startswith(f"{str(path)!r} ") and "\n" not in message
    assert len(message) < 500 and message.endswith((".", ")."))
    return message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "is empty: give"),
        ("blank.md", b" \n\t\n\xc2\xa0", "has no text in it: give"),
        ("blank.docx", docx(paragraph("")), "has no text in it: give"),
        ("picture.txt", PNG, "zero bytes.*an image"),
        ("program.txt", b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff", "zero bytes.*a program"),
        ("program.html", b"<html>\0\0", "zero bytes"),
        ("noise.txt", bytes(range(128, 256)) * 9, "not certain.*save it as UTF-8"),
        ("short.txt", "Café.".encode("cp1252"), "not certain.*iconv -f cp1252"),
        ("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", r"old Word file \(.doc\).*as DOCX"),
        ("locked.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "locked with a password"),
        ("rich.rtf", rb"{\rtf1 The mill.}", "is an RTF file: save it as DOCX"),
        ("scan.pdf", pdf([], []), "no text in its 2 pages.*run OCR"),
        ("scan2.pdf", pdf_with_picture([]), "run OCR"),
        ("locked.pdf", pdf(["One line."], **LOCKED), r"is locked \(encrypted\).*print it"),
        ("none.pdf", b"%PDF-1.7\n", "is damaged.*save it anew"),
        ("zeros.pdf", b"\0" * 64, "is no PDF, or a damaged one"),
        ("half.pdf", pdf(["One line."])[:200], "is damaged.*save it anew"),
        ("half.docx", docx(BODY)[:-40], "is damaged.*save it anew"),
        ("bare.docx", archive({}), "is an archive, but no Word file"),
        ("table.docx", archive({"xl/workbook.xml": "<x/>"}), "no Word file.*unpack it"),
        ("wrong.docx", docx(BODY + "<w:p>"), "is damaged.*save it anew"),
        ("app.html", SCRIPT.encode(), "a page without text.*script.*print it to PDF"),
        ("deep.docx", docx("<w:p>" * DEEP + "</w:p>" * DEEP), "nested too deeply|is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert re.search(said, refusal(path)), refusal(path)


@pytest.mark.skipif(bool(find_spec("cryptography")), reason="with it, AES is read")
def test_a_pdf_in_aes_is_refused_as_locked_without_a_package_for_it(tmp_path):
    rc4 = {"user_password": "", "owner_password": "b", "algorithm": "RC4-128"}
    aes = b"/V 4\n/R 4\n/CF << /A << /CFM /AESV2 /Length 16 >> >> /StmF /A /StrF /A"
    content = pdf(["One line."], **rc4).replace(b"/V 2\n/R 3", aes)
    assert aes in content
    (tmp_path / "locked.pdf").write_bytes(content)
    assert "is locked (encrypted)" in refusal(tmp_path / "locked.pdf")


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "is a device or pipe: give a file" in refusal(tmp_path / "pipe.txt")
    assert "is a device or pipe" in refusal("/dev/zero")
    open_files = len(os.listdir("/proc/self/fd"))
    assert "is a folder: give the files in it" in refusal(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert "is not there: check the name" in refusal(tmp_path / "gone.txt")
    assert "is a link to a file that is not there" in refusal(tmp_path / "link.txt")
    assert "symbolic links" in refusal(tmp_path / "loop.txt")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "null byte" in refusal(tmp_path / "a\0b")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text("Mine.")
    path.chmod(0)
    if os.geteuid() == 0:  # whom no permission keeps out

        def denied(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", denied)
    assert "may not be read by you: change its permissions" in refusal(path)


def test_a_file_above_the_limit_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "large.pdf"
    with path.open("wb") as file:
        file.truncate(60_000_000)
    assert "has 60.0 MB, more than the 50 MB that are read: split it" in refusal(path)


@pytest.mark.slow
def test_a_bomb_is_refused_by_its_declared_size(tmp_path):
    path = tmp_path / "bomb.docx"
    path.write_bytes(docx(BODY, **{"word/media/a.bin": bytes(docx_module.UNPACKED_BYTES)}))
    assert path.stat().st_size < 300_000
    assert "unpacks to 200 MB, more than 200 MB" in refusal(path)


def test_a_bomb_that_declares_a_small_size_is_refused(tmp_path):
    """Both of its headers are made to lie."""
    content = bytearray(docx(BODY, **{"word/media/a.bin": bytes(5_000_000)}))
    size = struct.pack("<I", 5_000_000)
    assert content.count(size) == 2
    path = tmp_path / "bomb.docx"
    path.write_bytes(content.replace(size, struct.pack("<I", 100)))
    assert "is damaged (in its part 'word/media/a.bin')" in refusal(path)


PARSERS = {"spins": "while True: pass", "sleeps": "import time; time.sleep(60)"}


@pytest.mark.slow
@pytest.mark.parametrize("does", PARSERS)
def test_a_parser_that_does_not_end_is_ended(tmp_path, monkeypatch, does):
    """A module of the parser's name stands before it, and does what a hostile file makes it do."""
    (tmp_path / "pypdf.py").write_text(PARSERS[does])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.pdf").write_bytes(pdf(["One line."]))
    said = refusal(tmp_path / "a.pdf", limits=Limits(seconds=1))
    assert "takes longer than 1 s to read: give a part" in said


@pytest.mark.slow
def test_the_limit_of_computing_ends_a_parser_by_itself(tmp_path, monkeypatch):
    """Also where nobody waits for it. What is left of the limit is made short for the test."""
    (tmp_path / "pypdf.py").write_text(
        "from resource import *\n"
        "seconds, highest = getrlimit(RLIMIT_CPU)\n"
        "assert seconds == 9\n"
        "setrlimit(RLIMIT_CPU, (1, highest))\n"
        "while True: pass"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.pdf").write_bytes(pdf(["One line."]))
    assert "takes longer than 9 s" in refusal(tmp_path / "a.pdf", limits=Limits(seconds=9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("b'x' * 10**9", "takes more than 300 MB of memory to read: split it"),
        ("x = []\nwhile True: x.append(bytes(10**6))", "takes more than 300 MB of memory"),
        ("import os; os.kill(os.getpid(), 9)", r"ended its parser (code -9)"),
        ("import os; os.abort()", r"ended its parser (code -6)"),
        ("f = lambda: f()\nf()", "is nested too deeply"),
        ("raise ZeroDivisionError('by\\x1b 0\\nmore')", "is damaged (by 0): save it anew"),
        ("raise ModuleNotFoundError('', name='pypdf')", "pypdf to be read: pip install"),
        ("open('FOLDER/made', 'w').write('x')", "is damaged"),
    ],
)
def test_what_a_parser_does_is_an_error_of_the_file(tmp_path, monkeypatch, does, said):
    (tmp_path / "pypdf.py").write_text(does.replace("FOLDER", str(tmp_path)))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.pdf").write_bytes(pdf(["One line."]))
    assert said in refusal(tmp_path / "a.pdf", limits=Limits(memory_bytes=300_000_000))
    (tmp_path / "a.txt").write_text("Text needs no parser.")
    assert read_document(tmp_path / "a.txt") == Text("Text needs no parser.", "a")


def test_more_text_than_the_limit_is_refused(tmp_path):
    (tmp_path / "a.docx").write_bytes(docx(BODY * 300))
    said = refusal(tmp_path / "a.docx", limits=Limits(text_bytes=30_000))
    assert "has more than 0 MB of text in it: split it" in said
    assert len(read_document(tmp_path / "a.docx").text) > 30_000


@pytest.mark.slow
def test_a_real_file_meets_the_limit_of_memory(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("<html>" + "<p><i>a</i><b>b</b>" * 40_000)
    assert "takes more than 100 MB" in refusal(path, limits=Limits(memory_bytes=100_000_000))


FILES = {
    "a.txt": b"The mill was built in 1783.",
    "a.html": b"<!DOCTYPE html><html><title>Mill</title><p>Built in <b>1783</b>.",
    "a.pdf": pdf(["One line.", "Another line."]),
    "a.docx": docx(BODY),
}


def outcome(path):
    """Checks that a file gives a text or a refusal."""
    try:
        found = read_document(path, Limits(seconds=20))
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert found.text.strip() and found.title.strip() and "\0" not in found.text


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300),
    st.sampled_from(["", "%PDF-1.7\n", "PK\3\4", "<html>", "\xff\xfe"]),
    st.sampled_from(["a", "a.txt", "a.html", "a.pdf", "a.docx"]),
)
def test_any_bytes_give_a_text_or_one_error(tmp_path, content, start, name):
    (tmp_path / name).write_bytes(start.encode("latin-1") + content)
    outcome(tmp_path / name)


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_file_gives_a_text_or_one_error(tmp_path, name, data):
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    (tmp_path / name).write_bytes(content)
    outcome(tmp_path / name)
