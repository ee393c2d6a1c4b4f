"""Many documents: added, changed, asked, checked, on a tiny random base."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

import gistjax
from gistjax.compress.kept import entries_of
from gistjax.config import SelectConfig
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.inference.document import Document
from gistjax.inference.recent import Recent
from gistjax.inference.store_index import key_of
from tests.helpers.runs import SELECTED, write_run

BIDIRECTIONAL = dataclasses.replace(SELECTED.encoder, bidirectional=True)
CONFIG = SELECTED.replace(
    select=SelectConfig("knorm"),
    encoder=BIDIRECTIONAL,
    data=dataclasses.replace(SELECTED.data, context_tokens=64, context_buckets=(64,)),
)
PARTS = [
    "The mill at Wending was built by Anneke Dursel.",
    "Its wheel is of oak, and nine feet wide.",
    "The baker rents the cellar for two crowns.",
]
MILL = "\n\n".join(PARTS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return gistjax.load(write_run(tmp_path_factory.mktemp("run") / "run", CONFIG))


@pytest.fixture
def store(engine, tmp_path):
    return gistjax.Store(tmp_path / "store", engine)


@pytest.mark.slow
def test_a_text_is_compressed_once_and_of_a_changed_one_what_changed(store):
    first = store.add("mill", MILL)
    assert first.compressed == first.pieces == 3 and first.seconds > 0
    assert store.add("mill", MILL).unchanged
    copy = store.add("copy", MILL)
    assert (copy.pieces, copy.compressed) == (3, 0)
    elm = MILL.replace("oak", "elm")
    changed = store.add("mill", elm)
    assert (changed.pieces, changed.compressed) == (3, 1)
    between = "A sentence that is too long to fit in with one of those beside."
    longer = store.add("mill", elm.replace(PARTS[0], f"{PARTS[0]}\n\n{between}"))
    assert (longer.pieces, longer.compressed) == (4, 1)
    assert [piece.text for piece in store.index.pieces("copy")] == PARTS
    store.remove("copy", "mill")
    assert not store.documents() and not list(store.index.entries.iterdir())


@pytest.mark.slow
def test_it_answers_from_the_pieces_that_fit_as_from_one_document(store, engine):
    store.add("mill", MILL)
    store.add("pump", "The pump is checked every spring.")
    question = "Who built the mill?"
    one = store.ask(question, 1)
    assert one.pieces[0].text == PARTS[0] and one.pieces[0].document == "mill"
    assert one.answer.written == engine.compress(PARTS[0]).ask(question).written
    two = store.ask("Is the wheel or the cellar of oak?", 2)
    documents = [engine.compress(piece.text) for piece in two.pieces]
    joined = engine.join(documents)
    assert joined.tokens == sum(d.tokens for d in documents) and joined.pieces == 2
    assert two.answer.written == joined.ask("Is the wheel or the cellar of oak?").written
    again = gistjax.Store(store.index.path, engine)
    assert again.ask(question, 1).answer.written == one.answer.written
    assert store.ask("pump", within="pump").pieces[0].document == "pump"
    assert repr(again) == f"Store({store.index.path}, 2 documents, ratio 4)"


@pytest.mark.slow
def test_what_cannot_be_asked_is_told(store):
    with pytest.raises(DataError, match="has a word of the question 'Who\\?': ask in its words"):
        store.ask("Who?")
    store.add("mill", MILL)
    for pieces in (0, 1.5, 10**30):
        with pytest.raises(ConfigError, match="must be a number from 1 to 64"):
            store.ask("Who built the mill?", pieces)
    with pytest.raises(ConfigError, match="holds no 'mil'; did you mean 'mill'"):
        store.ask("Who built the mill?", within="mil")
    for name, text in (("", MILL), ("mill", " \n"), ("mill", 3), ("a\nb", MILL)):
        with pytest.raises(DataError):
            store.add(name, text)
    assert len(store.documents()) == 1


@pytest.mark.slow
def test_a_store_keeps_its_ratio_and_bits_and_its_compressor(engine, tmp_path):
    store = gistjax.Store(tmp_path / "store", engine, ratio=2, bits=4)
    store.add("mill", MILL)
    again = gistjax.Store(tmp_path / "store", engine)
    assert (again.ratio, again.bits) == (2.0, 4)
    kept = engine.open(store.index.file(store.index.pieces("mill")[0].key))
    assert kept.stored().bits == 4
    with pytest.raises(CheckpointError, match=r"made with ratio=2\.0, not 4\.0"):
        gistjax.Store(tmp_path / "store", engine, ratio=4)
    with pytest.raises(CheckpointError, match="made with bits=4, not 8"):
        gistjax.Store(tmp_path / "store", engine, bits=8)
    other = gistjax.load(write_run(tmp_path / "other", CONFIG.replace(seed=7)))
    with pytest.raises(CheckpointError, match="made with compressor="):
        gistjax.Store(tmp_path / "store", other)
    with pytest.raises(ConfigError, match="bits=5"):
        gistjax.Store(tmp_path / "new", engine, bits=5)
    whole = gistjax.load(write_run(tmp_path / "whole", SELECTED.replace(architecture="none")))
    with pytest.raises(ConfigError, match="keeps what a compressor makes"):
        gistjax.Store(tmp_path / "new", whole)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_damaged_file_is_told_and_a_missing_one_made_again(store):
    store.add("mill", MILL)
    assert store.check() == []
    first, second, _ = [store.index.file(piece.key) for piece in store.index.pieces("mill")]
    content = bytearray(first.read_bytes())
    content[-3] ^= 1
    first.write_bytes(content)
    second.unlink()
    problems = store.check()
    assert len(problems) == 2 and "mill, piece 1" in problems[0] and "damaged" in problems[0]
    with pytest.raises(CheckpointError, match="is damaged"):
        gistjax.Store(store.index.path, store.engine).ask("Who built the mill?", 1)
    assert store.add("mill", MILL).compressed == 2 and store.check() == []
    third = store.index.file(store.index.pieces("mill")[2].key)
    third.write_bytes(first.read_bytes())
    assert ["kept of another text" in problem for problem in store.check()] == [True]
    assert store.add("mill", MILL).compressed == 1 and store.check() == []


@pytest.mark.slow
def test_a_read_error_loses_nothing(store, monkeypatch):
    store.add("mill", MILL)
    monkeypatch.setattr(Path, "read_bytes", lambda _: os.open("/nowhere", 0))
    assert len(store.check()) == 3
    monkeypatch.undo()
    assert store.check() == [] and len(list(store.index.entries.iterdir())) == 3


@pytest.mark.slow
def test_readings_stay_in_memory_within_a_budget_and_are_used_again(store, monkeypatch):
    store.add("mill", MILL)
    joins, join = [], store.engine.join
    monkeypatch.setattr(store.engine, "join", lambda parts: joins.append(1) or join(parts))
    questions = ["Who built the mill?", "Is the wheel of oak?", "Who rents the cellar?"]
    first = [store.ask(question, 1).answer.written for question in questions]
    assert [store.ask(question, 1).answer.written for question in questions] == first
    assert len(joins) == 3 and len(store._open) == 6  # each piece alone, and as it is asked
    each = store._open.values()[-1].held_bytes
    monkeypatch.setattr(store, "_open", Recent(2 * each, lambda document: document.held_bytes))
    assert [store.ask(question, 1).answer.written for question in questions] == first
    store.open_piece(store.index.pieces("mill")[0])  # what was asked last has grown until then
    held = sum(document.held_bytes for document in store._open.values())
    assert each <= held <= 2 * each and len(store._open) < 6


@pytest.mark.slow
def test_the_prompt_before_entries_is_read_once_for_all_documents(engine):
    asked, other = (engine.compress(part) for part in PARTS[:2])
    asked.ask("Who built the mill?")
    before = other.seconds
    other.ask("Is the wheel of oak?")
    assert other.seconds == before and other.held_bytes >= 2 * other.resident_bytes
    states = [document._states.values()[0] for document in (asked, other)]
    assert states[0].cache.k is states[1].cache.k


@pytest.mark.slow
def test_a_document_that_is_replaced_while_it_is_asked_is_looked_up_again(store, monkeypatch):
    writer, search = gistjax.Store(store.index.path, store.engine), store.index.search
    texts = [f"The mill was built by {name}." for name in ("Ada", "Bea", "Cleo", "Dora")]
    store.add("mill", texts[0])

    def replaced(times):
        def search_then_replace(*args):
            found = search(*args)
            if times and times.pop():
                writer.add("mill", texts.pop())
            return found

        monkeypatch.setattr(store.index, "search", search_then_replace)

    replaced([True])
    told = store.ask("Who built the mill?")
    assert told.pieces[0].text == "The mill was built by Dora."
    store._open = Recent(0)
    replaced([True, True])
    with pytest.raises(CheckpointError, match="cannot read"):
        store.ask("Who built the mill?")
    replaced([])
    assert store.ask("Who built the mill?").pieces[0].text == "The mill was built by Bea."


@pytest.mark.slow
def test_a_changed_word_is_not_cut_in_two(store):
    store.add("pump", "Pump")
    store.add("pump", "Pumpkin soup is hot. Pump")
    texts = [piece.text for piece in store.index.pieces("pump")]
    assert " ".join(texts) == "Pumpkin soup is hot. Pump" and "kin" not in " ".join(texts).split()
    store.add("degrees", "The temperature is 2")
    store.add("degrees", "The temperature is 23 degrees today, which is more than it was for long.")
    assert "The temperature is 23" in store.index.pieces("degrees")[0].text


@pytest.mark.slow
def test_an_interrupted_text_goes_on_where_it_was(store, monkeypatch):
    compress, left = store.engine.programs.compress, [1]  # a batch of two pieces

    def interrupted(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return compress(*args, **kwargs)

    monkeypatch.setattr(store.engine.programs, "compress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.add("mill", MILL)
    monkeypatch.undo()
    assert store.documents() == [] and store.add("other", "A word.").compressed == 1
    assert store.add("mill", MILL).compressed == 1


@pytest.mark.slow
def test_pieces_of_many_texts_are_read_together_and_a_refused_one_stops_none(store, monkeypatch):
    compress, batches, told = store.engine.programs.compress, [], []

    def counted(ids, *args):
        batches.append((len(ids), len(told)))
        return compress(ids, *args)

    monkeypatch.setattr(store.engine.programs, "compress", counted)
    monkeypatch.setattr(store.engine, "tokens_at_once", 64)  # on each of the devices
    rows = 8
    notes = [(f"note {i}", f"Note {i} is on the mill.") for i in range(rows - 1)]
    given = [*notes, ("empty", ""), ("note 0", "Another text."), ("mill", MILL), ("copy", MILL)]
    added = store.add_many(given, told.append)
    assert [one.name for one in added] == [name for name, _ in given]
    assert sorted(map(id, added)) == sorted(map(id, told))
    assert {one.name: one.compressed for one in added if not one.problem} == {
        **dict.fromkeys(dict(notes), 1),
        "mill": 3,
        "copy": 0,
    }
    assert batches == [(rows, 2), (2, 2 + len(notes))]
    refused = {one.name: str(one.problem) for one in added if one.problem}
    assert refused.keys() == {"empty", "note 0"} and "two documents are called" in refused["note 0"]
    assert not any(one.unchanged for one in added)
    assert [one.pieces for one in added if one.name in ("mill", "copy")] == [3, 3]
    assert all(one.unchanged for one in store.add_many([*notes, ("mill", MILL)]))
    shares = {one.seconds for one in added if one.name.startswith("note") and one.compressed}
    assert len(shares) == 1 and len(store.documents()) == rows + 1 and store.check() == []


@pytest.mark.slow
def test_a_piece_that_cannot_be_kept_refuses_the_documents_that_have_it(store, monkeypatch):
    save = Document.save

    def fail(document, file, bits=None):
        if file == store.index.file(key_of(PARTS[1])):
            raise DataError("a number is not finite.")
        return save(document, file, bits)

    monkeypatch.setattr(Document, "save", fail)
    added = store.add_many(
        [("mill", MILL), ("copy", MILL), ("wheel", PARTS[1]), ("baker", PARTS[2])]
    )
    refused = [one.name for one in added if one.problem]
    assert refused == ["mill", "copy", "wheel"] and len(added) == 4
    assert [held.name for held in store.documents()] == ["baker"]
    with pytest.raises(DataError, match="not finite"):
        store.add("wheel", PARTS[1])


@pytest.mark.slow
def test_a_text_that_grows_stays_in_long_pieces(store):
    lines = [f"Day {day}: all well." for day in range(9)]
    for day in range(1, 10):
        store.add("log", "\n".join(lines[:day]))
    whole = [piece.text for piece in store.engine.cut("\n".join(lines))]
    assert [piece.text for piece in store.index.pieces("log")] == whole and len(whole) == 3
    assert len(list(store.index.entries.iterdir())) == 3


@pytest.mark.slow
def test_what_cannot_be_joined_is_told_and_refinement_is_remembered(engine, tmp_path):
    with pytest.raises(DataError, match="no document to join"):
        engine.join([])
    other = gistjax.load(write_run(tmp_path / "other", CONFIG.replace(seed=7)))
    with pytest.raises(CheckpointError, match="of another compressor"):
        engine.join([engine.compress(PARTS[0]), other.compress(PARTS[0])])
    documents = [dataclasses.replace(engine.compress(part), refined=2) for part in PARTS]
    assert engine.join(documents).refined == 2


@pytest.mark.slow
def test_joined_entries_are_those_of_all(engine):
    documents = [engine.compress(part) for part in PARTS]
    joined = engine.join(documents)
    counts = [entries_of(document.context).count_LxK for document in documents]
    np.testing.assert_array_equal(entries_of(joined.context).count_LxK, sum(counts))
    assert joined.context.length_B == max(int(d.context.length_B[0]) for d in documents)


def test_many_questions_are_answered_as_one_by_one(engine, tmp_path):
    store = gistjax.Store(tmp_path / "store", engine)
    store.add("mill", "The mill was built in 1783 by Anneke Dursel.")
    store.add("port", "The harbour of Ostrel was dredged in 1902.")
    asked = [
        "Who built the mill?",
        "Xylophones?",
        "",
        "When was the harbour dredged?",
        "mill " * 600,
    ]
    mill, none, empty, port, long = store.ask_many(asked)
    assert [told.pieces[0].document for told in (mill, port)] == ["mill", "port"]
    assert [told.answer.text for told in (mill, port)] == [
        store.ask(asked[place]).answer.text for place in (0, 3)
    ]
    assert [type(told) for told in (none, empty, long)] == [DataError] * 3
    assert "has a word of" in str(none) and "shorten it" in str(long)
    with pytest.raises(DataError, match="has a word of"):
        store.ask("Xylophones?")


def test_each_question_may_have_its_own_document(engine, tmp_path):
    store = gistjax.Store(tmp_path / "store", engine)
    store.add("old", "The mill was built in 1783.")
    store.add("new", "The mill was built in 1902.")
    asked, within = ["When was the mill built?"] * 4, ["new", "old", "nwe", None]
    new, old, none, _ = store.ask_many(asked, pieces=1, within=within)
    assert [told.pieces[0].document for told in (new, old)] == ["new", "old"]
    assert isinstance(none, ConfigError) and "did you mean 'new'" in str(none)
    with pytest.raises(DataError, match="4 documents for 1 questions"):
        store.ask_many(["When?"], within=within)


def test_many_are_added_in_their_order_and_wrong_ones_are_told(engine, tmp_path):
    store = gistjax.Store(tmp_path / "store", engine)
    texts = {"long": "The mill is old. " * 30, "empty": "", "short": "The port is new."}
    assert [added.name for added in store.add_many(texts.items())] == ["long", "empty", "short"]
    for wrong in (texts, ["ab"], [("one", "two", "three")]):
        with pytest.raises(DataError, match=r"must be a pair: \(name, text\)"):
            store.add_many(wrong)
    for wrong in ("Who?", None, 3):
        with pytest.raises(DataError, match="takes a list of questions"):
            store.ask_many(wrong)
    assert len(store.ask_many(question for question in ("mill?", "port?"))) == 2
    for pieces, shown in (("2", "'2'"), (True, "True"), (0, "0")):
        with pytest.raises(ConfigError, match=f"pieces={shown} must be"):
            store.ask("mill?", pieces=pieces)
    with pytest.raises(ConfigError, match="ratio=0"):
        gistjax.Store(tmp_path / "other", engine, ratio=0)


def test_a_damaged_piece_keeps_no_answer_from_other_questions(engine, tmp_path):
    store = gistjax.Store(tmp_path / "store", engine)
    store.add_many([("mill", "The mill was built in 1783."), ("port", "The port is new.")])
    (piece,) = store.index.pieces("mill")
    store.index.file(piece.key).write_bytes(b"damaged")
    mill, port = gistjax.Store(tmp_path / "store", engine).ask_many(["mill?", "port?"])
    assert isinstance(mill, CheckpointError) and port.pieces[0].document == "port"
    assert "mill, piece 1" in str(mill) and "add the document again" in str(mill)
