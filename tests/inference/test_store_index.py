"""A store's folder: what it holds, finds and forgets, and what it refuses."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from gistjax.errors import CheckpointError, ConfigError, InUseError, StorageError
from gistjax.inference.store_index import StoreIndex, key_of
from gistjax.runtime.files import RunLock
from tests.stress.stores import ABOUT, put

PUMP = ("The pump is checked every spring.", "Its filter is changed twice a year by Quilla.")
MILL = ("The mill was built in 1783.", "The pump is checked every spring.")


@pytest.fixture
def index(tmp_path):
    return StoreIndex(tmp_path / "store", ABOUT)


def test_documents_and_their_pieces_are_there_in_their_order(index):
    put(index, "pump", PUMP)
    put(index, "mill", MILL)
    assert [(d.name, d.tokens, d.pieces) for d in index.documents()] == [
        ("mill", 10, 2),
        ("pump", 10, 2),
    ]
    assert tuple(piece.text for piece in index.pieces("pump")) == PUMP
    assert index.find("pump").sha256 == key_of("".join(PUMP)) and index.find("nothing") is None
    again = StoreIndex(index.path)
    assert again.documents() == index.documents() and again.about == {"format": "1", **ABOUT}


def test_the_pieces_that_share_most_words_come_first(index):
    put(index, "pump", PUMP)
    put(index, "mill", MILL)
    found = index.search("When do they CHANGE the filters?", 2)
    assert found[0].text == PUMP[1]  # both words in another form
    assert [piece.document for piece in index.search("pump", 5)] == ["pump"]  # both have it
    assert [piece.document for piece in index.search("pump", 5, "mill")] == ["mill"]
    assert len(index.search("the pump", 1)) == 1
    assert index.search("?!", 3) == index.search("zebra", 3) == []
    assert index.search('" OR text NOT NEAR( * built', 3)[0].text == MILL[0]


def test_a_document_is_replaced_whole_and_equal_pieces_are_kept_once(index):
    put(index, "pump", PUMP)
    put(index, "mill", MILL)
    assert len(list(index.entries.iterdir())) == 3
    put(index, "pump", PUMP[:1])
    with index.writing():
        pass
    assert {file.stem for file in index.entries.iterdir()} == {key_of(text) for text in MILL}
    assert index.search("Quilla filter", 3) == [] and index.problems() == []


def test_nothing_of_a_removed_document_stays(index):
    put(index, "pump", PUMP)
    put(index, "mill", MILL)
    index.remove(["pump"])
    assert [held.name for held in index.documents()] == ["mill"]
    assert len(list(index.entries.iterdir())) == 2  # a piece that both have
    content = b"".join(file.read_bytes() for file in index.path.rglob("*") if file.is_file())
    assert b"mill" in content and b"uilla" not in content
    with pytest.raises(ConfigError, match="holds no 'mil'; did you mean 'mill'"):
        index.remove(["mill", "mil"])
    assert index.find("mill")
    index.remove(["mill"])
    with pytest.raises(ConfigError, match="it is empty"):
        index.check_held(["mill"])


def test_of_many_documents_only_the_closest_names_are_told(index):
    for number in range(30):
        put(index, f"reports/{number:02}.txt", MILL)
    with pytest.raises(ConfigError) as refused:
        index.remove(["report/07.txt"])
    assert "did you mean 'reports/07.txt' or " in str(refused.value)
    assert str(refused.value).count("reports/") == 3
    with pytest.raises(ConfigError, match="`gistjax store list` shows"):
        index.remove(["xyz"])
    for number in range(30, 101):  # too many to compare them all
        put(index, f"reports/{number:03}.txt", MILL)
    with pytest.raises(ConfigError, match="`gistjax store list` shows"):
        index.remove(["report/07.txt"])


def test_a_search_within_a_document_sees_its_pieces_alone(index):
    put(index, "a", ["mill one", "port"])
    put(index, "b", ["mill two"])
    put(index, "a", ["mill three", "mill four"])  # written anew, behind b
    assert {piece.text for piece in index.search("mill", 4, "a")} == {"mill three", "mill four"}
    assert [piece.text for piece in index.search("mill", 4, "b")] == ["mill two"]
    assert not index.search("port", 4, "a") and not index.search("mill", 4, "c")


def test_two_indexes_of_a_process_are_not_told_as_two_processes(index):
    other = StoreIndex(index.path)
    with index.writing(), pytest.raises(InUseError, match="which is this process"):
        other.remove(["pump"])


def test_what_was_interrupted_is_there_when_it_goes_on_until_it_is_swept(index):
    put(index, "pump", PUMP)
    left = index.file(key_of("not named yet"))
    left.write_bytes(b"made")
    left.with_name(left.name + ".tmp").write_bytes(b"half")
    put(index, "mill", MILL)
    index.remove(["mill"])
    assert left.exists() and len(list(index.entries.iterdir())) == 4
    assert sorted(index.sweep()) == [left.name, left.name + ".tmp"]
    assert len(list(index.entries.iterdir())) == 2 and index.problems() == []


def test_a_removal_that_was_interrupted_is_ended_by_the_next_writer(index, monkeypatch):
    put(index, "pump", PUMP)
    monkeypatch.setattr(StoreIndex, "_bury", lambda self: None)  # as if killed before it
    index.remove(["pump"])
    assert len(list(index.entries.iterdir())) == 2
    monkeypatch.undo()
    with StoreIndex(index.path).writing():
        assert not list(index.entries.iterdir())


def test_threads_may_share_a_store(index):
    put(index, "pump", PUMP)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: index.search("pump", 1), range(40)))
    assert all(pieces == found[0] for pieces in found)


def test_function_words_find_nothing_unless_there_are_no_others(index):
    put(index, "mill", ["Who is it that was there?", "The mill grinds rye."])
    assert [p.place for p in index.search("Who was the owner of the mill?", 3)] == [1]
    assert index.search("What is the satellite?", 3) == []
    assert [p.place for p in index.search("Who was it?", 3)] == [0]


def test_one_process_writes_at_a_time(index):
    with RunLock(index.path), pytest.raises(CheckpointError, match="or write to another store"):
        index.remove(["pump"])
    other = sqlite3.connect(index.path / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    index._sql.execute("PRAGMA busy_timeout=10")
    with pytest.raises(StorageError, match="in use by another process: try again"):
        put(index, "pump", PUMP)
    other.execute("ROLLBACK")
    put(index, "pump", PUMP)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no store: `gistjax store add"):
        StoreIndex(tmp_path / "nothing")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(CheckpointError, match="is a file: a store is a folder of its own"):
        StoreIndex(file, ABOUT)
    file.unlink()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="has other files in it"):
        StoreIndex(tmp_path, ABOUT)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_lost_or_emptied_index_is_told_and_what_was_made_by_half_goes_on(index):
    file = index.path / "index.sqlite"
    file.write_bytes(b"")  # a process was killed while it made the store
    file.with_name(file.name + "-journal").write_bytes(b"")
    again = StoreIndex(index.path, ABOUT)
    assert again.documents() == [] and again.about["ratio"] == "8.0"
    put(again, "pump", PUMP)
    for lose in (lambda: file.write_bytes(b""), file.unlink):
        lose()
        with pytest.raises(CheckpointError, match="has lost its index.sqlite: restore it"):
            StoreIndex(index.path, ABOUT)


def test_equal_pieces_of_two_documents_are_found_once(index):
    put(index, "pump", PUMP)
    put(index, "mill", MILL)
    found = index.search("When is the pump checked, and the mill built?", 2)
    assert {piece.text for piece in found} == set(MILL)


def test_words_are_found_as_they_are_written(index):
    put(index, "street", ["Die Straße ist lang.", "What's near Ålesund"])
    assert [piece.place for piece in index.search("Straße?", 2)] == [0]
    assert [piece.place for piece in index.search("ÅLESUND", 2)] == [1]
    assert index.search("What's a zebra?", 2) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE piece SET text = x'ff'",
        "UPDATE piece SET text = CAST(x'ff' AS TEXT)",
        "UPDATE piece SET key = x'ff'",
        "UPDATE document SET name = x'ff'",
        "UPDATE document SET name = 'a' || char(27) || '[2J'",
    ],
)
def test_rows_that_no_store_writes_are_told(index, statement):
    put(index, "pump", PUMP)
    index._sql.execute(statement)

    def read():
        names = [held.name for held in index.documents()]
        index.search("pump", 2)
        index.sweep()
        return [index.pieces(name) for name in names]

    with pytest.raises(CheckpointError, match="is damaged"):
        read()


def test_words_of_a_changed_text_go_with_it(index):
    put(index, "pump", PUMP)
    put(index, "mill", MILL)
    index._sql.execute("UPDATE piece SET text = 'another' WHERE text LIKE '%Quilla%'")
    assert index.problems()
    index.remove(["pump"])
    assert index.problems() == [] and index.search("Quilla", 2) == []
    assert b"uilla" not in (index.path / "index.sqlite").read_bytes()
    put(index, "pump", PUMP)
    assert index.search("Quilla", 2)[0].text == PUMP[1]


def test_threads_write_one_after_another(index):
    def write(number):
        with index.writing():
            put(index, f"document {number}", [f"text {number}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(12)))
    assert len(index.documents()) == 12 and index.problems() == []


def test_names_that_are_no_text_are_not_here(index):
    with pytest.raises(ConfigError, match=r"holds no '\\udc80': it is empty"):
        index.remove(["\udc80"])


def test_a_store_made_otherwise_is_refused(index):
    StoreIndex(index.path, {**ABOUT})
    with pytest.raises(CheckpointError, match=r"made with ratio=8\.0, not 4\.0"):
        StoreIndex(index.path, {**ABOUT, "ratio": "4.0"})
    index._sql.execute("UPDATE about SET value = '2' WHERE key = 'format'")
    with pytest.raises(CheckpointError, match="format 2, this gistjax reads 1"):
        StoreIndex(index.path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER INSERT ON piece BEGIN DELETE FROM document; END",
        "CREATE TRIGGER evil AFTER INSERT ON piece BEGIN UPDATE about SET value = 'words_'; END",
        "CREATE VIEW evil AS SELECT load_extension('x')",
        "DROP TABLE about",
        "ALTER TABLE document ADD COLUMN evil",
    ],
)
def test_an_index_with_other_tables_is_not_used(index, statement):
    put(index, "pump", PUMP)
    index._sql.execute(statement)
    with pytest.raises(CheckpointError, match="its tables are others"):
        StoreIndex(index.path)


def test_a_key_that_leads_elsewhere_is_refused(index):
    put(index, "pump", PUMP)
    index._sql.execute("UPDATE piece SET key = '../../etc/passwd'")
    with pytest.raises(CheckpointError, match=r"names a piece '\.\./"):
        index.file("../../etc/passwd")
    with pytest.raises(CheckpointError, match=r"names a piece '\.\./"):
        index.sweep()


def test_a_damaged_index_is_told(index):
    put(index, "pump", [f"piece {i} of many words" for i in range(400)])
    index._sql.close()
    file = index.path / "index.sqlite"
    content = bytearray(file.read_bytes())
    content[:16] = b"no database here"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged .*restore it from a copy"):
        StoreIndex(index.path)


def test_a_text_or_words_changed_by_another_hand_are_told(index):
    put(index, "pump", PUMP)
    index._sql.execute("UPDATE piece SET text = 'another' WHERE place = 0")
    for read in (lambda: index.pieces("pump"), lambda: index.search("spring", 1)):
        with pytest.raises(CheckpointError, match="'another' is not the text that was added"):
            read()
    problems = index.problems()
    assert any("the words do not fit the texts" in line for line in problems)
    assert any("a text is not the one that was added: 'another'" in line for line in problems)
