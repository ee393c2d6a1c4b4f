"""Files that are made to reach for others, for the network, or for all time and memory."""

import socket

import pytest

from gistjax.documents.kinds import kind_of
from gistjax.documents.reading import Limits, read_document
from gistjax.errors import DataError
from tests.helpers.documents import OFFICE, docx, paragraph

LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))


@pytest.fixture
def server():
    """An address that must not be called; checked at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_a_page_fetches_nothing(tmp_path, server):
    path = tmp_path / "page.html"
    path.write_text(
        f'<!DOCTYPE html SYSTEM "{server}/a.dtd"><html><head><base href="{server}">'
        f'<link rel=stylesheet href="{server}/a.css"><script src="{server}/a.js"></script>'
        f'<meta http-equiv=refresh content="0;url={server}"></head>'
        f'<p>Built. <img src="{server}/a.png"><a href="{server}">More</a>'
        f'<iframe src="{server}"></iframe><object data="{server}"></object>'
    )
    assert read_document(path).text == "Built. More"


@pytest.mark.parametrize("uri", ["file://{folder}/secret.txt", "{server}/secret.txt"])
def test_entities_of_a_word_file_are_not_followed(tmp_path, server, uri):
    (tmp_path / "secret.txt").write_text("SECRET")
    uri = uri.format(folder=tmp_path, server=server)
    dtd = f'<!DOCTYPE d SYSTEM "{uri}" [<!ENTITY x SYSTEM "{uri}"><!ENTITY % y SYSTEM "{uri}">%y;]>'
    (tmp_path / "a.docx").write_bytes(docx(paragraph("Built. &x;"), before=dtd))
    try:
        assert read_document(tmp_path / "a.docx").text == "Built."
    except DataError as error:
        assert "SECRET" not in str(error)


def test_pictures_and_templates_of_a_word_file_are_not_fetched(tmp_path, server):
    relations = "".join(
        f'<Relationship Id="{kind}" Type="{OFFICE}/{kind}" Target="{server}/{kind}" '
        'TargetMode="External"/>'
        for kind in ("image", "attachedTemplate", "hyperlink")
    )
    drawing = (
        '<w:p><w:r><w:drawing><wp:inline xmlns:wp="http://schemas.openxmlformats.org/drawingml/'
        '2006/wordprocessingDrawing"><a:graphic xmlns:a="http://schemas.openxmlformats.org/'
        'drawingml/2006/main"><a:graphicData><pic:pic xmlns:pic="http://schemas.openxmlformats.org/'
        'drawingml/2006/picture"><pic:blipFill><a:blip r:link="image"/></pic:blipFill></pic:pic>'
        "</a:graphicData></a:graphic></wp:inline></w:drawing></w:r></w:p>"
    )
    (tmp_path / "a.docx").write_bytes(docx(drawing + paragraph("Built."), relationships=relations))
    assert read_document(tmp_path / "a.docx").text == "Built."


def test_entities_that_multiply_are_refused(tmp_path):
    dtd = f'<!DOCTYPE d [<!ENTITY a0 "ha">{LAUGHS}]>'
    (tmp_path / "a.docx").write_bytes(docx(paragraph("&a11;"), before=dtd))
    with pytest.raises(DataError, match="is damaged|takes "):
        read_document(tmp_path / "a.docx", Limits(seconds=10, memory_bytes=500_000_000))


@pytest.mark.parametrize("element", ["div", "ul><li", "table><tr><td", "b"])
def test_deep_nesting_ends_in_a_text_or_an_error(tmp_path, element):
    path = tmp_path / "a.html"
    path.write_text("<html>" + f"<{element}>" * 20_000 + "deep")
    try:
        assert "deep" in read_document(path, Limits(seconds=10)).text
    except DataError as error:
        assert "too deeply" in str(error) or "takes longer" in str(error), error


def test_what_a_file_is_is_told_at_once():
    """Comments could be divided in more ways than there is time to try."""
    assert kind_of(b"<!---->" * 140 + b"x", "") == "text"
    assert kind_of(b"<!---->" * 140 + b"<html>", "") == "html"
    assert kind_of(b"<?xml version='1.0'?>\n<!-- a -->\n<!DOCTYPE html>", "") == "html"
