"""Texts as they come from files."""

import pytest

from gistjax.errors import DataError
from gistjax.inference.text import SAMPLE, read_context, words_that_fit

WRAPPED = (
    "The mill was built in 1783 by the shipwright Anneke Dursel, who had\n"
    "lost her yard to a fire two winters before. It has three wheels.\n"
)


def test_several_files_are_one_text_with_wrapped_lines_joined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(WRAPPED)
    (tmp_path / "b.txt").write_text("Ada wrote it.")
    text = read_context(["a.txt", "b.txt"])
    assert "who had lost her yard" in text and text.endswith("wheels.\n\n\nAda wrote it.")
    with pytest.raises(DataError, match="c.txt cannot be read"):
        read_context(["a.txt", "c.txt"])


def test_a_sample_comes_with_gistjax_unless_a_file_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = read_context(["sample"])
    assert "built in 1783 by the shipwright Anneke Dursel, who had lost" in text
    assert "\n" in SAMPLE.read_text().split("Anneke")[0], "the file is hard-wrapped"
    (tmp_path / "sample").write_text("Mine.")
    assert read_context(["sample"]) == "Mine."


@pytest.mark.parametrize(
    ("text", "tokens", "limit", "said"),
    [
        ("word " * 390, 589, 512, " (about 330 of its 390 words)"),
        ("word " * 20, 40, 20, " (about 10 of its 20 words)"),
        ("a" * 600, 600, 512, ""),
    ],
)
def test_how_much_fits_is_said_in_words(text, tokens, limit, said):
    assert words_that_fit(text, tokens, limit) == said
