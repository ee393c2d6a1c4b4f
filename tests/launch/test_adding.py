"""Pages added one at a time and in batches, on a tiny random base."""

import dataclasses
import json

import pytest
from absl import flags

from gistjax.config import SelectConfig
from gistjax.errors import DataError
from gistjax.inference.engine import load
from gistjax.runtime import cli
from launch import adding
from tests.helpers.runs import SELECTED, write_run

CONFIG = SELECTED.replace(
    select=SelectConfig("knorm"),
    encoder=dataclasses.replace(SELECTED.encoder, bidirectional=True),
)
SENTENCE = "The mill at Wending was built by Anneke Dursel. "


@pytest.fixture
def file(tmp_path):
    articles = [
        {"paragraphs": [{"context": f"{title}. {SENTENCE * 4}"} for _ in range(4)]}
        for title in ("One", "Two")
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": articles}))
    return path


@pytest.mark.slow
def test_pages_are_added_in_both_ways(file, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", CONFIG)
    values = flags.FlagValues()
    adding.define_flags(values)
    values(["adding", f"--run={run}", f"--data={file}", "--pages=3", "--bits=8"])
    printed = []
    monkeypatch.setattr(cli, "print_result", printed.append)
    adding.main(CONFIG, values)
    (found,) = printed
    alone, together = found["at_once"]["1"], found["at_once"]["4096"]
    assert found["at_once"].keys() == {"1", "4096"} and found["pages"] == 3
    assert alone["tokens"] == together["tokens"] > 2 * adding.PAGE_TOKENS
    assert alone["bytes"] == together["bytes"] > 0
    for one in (alone, together):
        assert 0 < one["reading_s"] < one["seconds"] == pytest.approx(3 / one["pages_per_s"], 0.1)
    pages = adding.read_pages(file, load(run).pretrained.prompt, 3)
    assert pages[0].startswith("One") and all(page.endswith(".") for page in pages)
    with pytest.raises(DataError, match="pages: set --pages to as many or fewer"):
        adding.read_pages(file, load(run).pretrained.prompt, 99)
