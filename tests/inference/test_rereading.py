"""Unsure answers, given again from the text."""

import dataclasses
import math

import pytest

import gistjax
from gistjax.config import SelectConfig
from gistjax.errors import ConfigError, DataError
from gistjax.inference import rereading
from tests.helpers.runs import ASKED as SLOTS
from tests.helpers.runs import SELECTED, write_run

CONFIG = SELECTED.replace(
    select=SelectConfig("knorm"),
    encoder=dataclasses.replace(SELECTED.encoder, bidirectional=True),
    data=dataclasses.replace(SELECTED.data, context_tokens=64, context_buckets=(64,)),
)
TEXTS = {
    "mill": "The mill at Wending was built by Anneke Dursel.\n\nIts wheel is of oak, and wide.",
    "port": "The harbour of Ostrel was dredged in 1902, when the mill was sold.",
    "pump": "The pump is checked every spring.",
}
ASKED = ["Who built the mill?", "When was the harbour dredged?", "Xylophones?", "Is the pump new?"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return gistjax.load(write_run(tmp_path_factory.mktemp("run") / "run", CONFIG))


@pytest.fixture
def store(engine, tmp_path):
    store = gistjax.Store(tmp_path / "store", engine)
    store.add_many(TEXTS.items())
    return store


@pytest.mark.slow
def test_only_unsure_answers_are_given_again_from_all_of_the_text(store, engine, monkeypatch):
    monkeypatch.setattr(rereading, "PIECES_AT_ONCE", 2)  # one question after another
    first = store.ask_many(ASKED)
    scores = sorted(told.answer.score for told in first if not isinstance(told, DataError))
    assert scores[0] < scores[1]
    below = (scores[1] + scores[2]) / 2  # two of three are unsure
    told: list[int] = []
    again = store.ask_many(ASKED, told=lambda place, _: told.append(place), reread=below)
    assert sorted(told) == [0, 1, 2, 3] and isinstance(again[2], DataError)
    for question, before, after in zip(ASKED, first, again, strict=True):
        if isinstance(before, DataError):
            continue
        assert after.reread == (before.answer.score < below)
        if not after.reread:
            assert after.answer.score == pytest.approx(before.answer.score, rel=1e-4)
            continue
        assert set(after.pieces) == set(before.pieces)
        pieces = store.index.search(question, 2)
        whole = engine.join([engine.compress(piece.text, ratio=1) for piece in pieces])
        alone = whole.ask(question)
        assert after.answer.written == alone.written
        assert after.answer.score == pytest.approx(alone.score, rel=1e-4)
        assert after.answer.positions == whole.slots == whole.tokens > before.answer.positions
    assert not store.ask(ASKED[0], reread=0).reread
    assert store.ask(ASKED[0], reread=1.0).to_json()["reread"]


@pytest.mark.parametrize("below", [-0.1, 1.1, math.nan, True, "0.5"])
def test_what_is_no_score_is_refused(store, below):
    with pytest.raises(ConfigError, match="give the score below which the text is read again"):
        store.ask(ASKED[0], reread=below)


def test_a_compressor_that_never_keeps_all_is_refused(tmp_path):
    slots = gistjax.Store(tmp_path / "s", gistjax.load(write_run(tmp_path / "run", SLOTS)))
    slots.add("mill", TEXTS["mill"])
    with pytest.raises(ConfigError, match="reread keeps every token, ratio 1, but"):
        slots.ask(ASKED[0], reread=0.5)
