"""The command, in this process, on a tiny random base."""

import dataclasses
import json
import sys

import pytest
from absl import flags

from gistjax import store
from gistjax.config import SelectConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment.run_dir import RunDir
from gistjax.inference import engine
from gistjax.runtime import cli
from tests.helpers.runs import SELECTED, write_run

CONFIG = SELECTED.replace(
    select=SelectConfig("knorm"),
    encoder=dataclasses.replace(SELECTED.encoder, bidirectional=True),
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A run and its engine, which compiles its programs once."""
    run = write_run(tmp_path_factory.mktemp("run") / "run", CONFIG)
    return run, engine.load(run)


@pytest.fixture
def command(loaded, tmp_path, monkeypatch, capsys):
    """Runs the command with some words; returns what it printed."""
    run, ready = loaded
    monkeypatch.setattr(engine, "load", lambda *_: ready)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mill.txt").write_text("The mill was built in 1783.")
    (tmp_path / "texts" / "pump.md").write_text("# Pump\n\nIt is checked every spring.")
    (tmp_path / "texts" / ".hidden").write_text("Not for readers.")

    def call(*words):
        values = flags.FlagValues()
        store.define_flags(values)
        monkeypatch.setattr(sys, "argv", ["store", f"--run={run}", *words])
        config, rest = cli._parse(sys.argv, lambda argv: RunDir(run).config(), values)
        capsys.readouterr()
        store.main(config, values, rest)
        return capsys.readouterr().out

    return call


def result(printed):
    """The JSON object that a command ends with."""
    return json.loads(printed.splitlines()[-1])


@pytest.mark.slow
def test_files_and_folders_are_added_listed_asked_and_removed(command):
    added = result(command("add", "kept", "texts", "--ratio=2"))
    assert (added["files"], added["failed"], added["compressed_pieces"]) == (2, 0, 2)
    assert result(command("add", "kept", "texts/mill.txt"))["compressed_pieces"] == 0
    listed = command("list", "kept").splitlines()
    assert [line.split()[0] for line in listed] == ["texts/mill.txt", "texts/pump.md", "2"]
    assert "ratio 2.0" in listed[-1]
    assert "It is checked every spring." in command("show", "kept", "texts/pump.md")
    with pytest.raises(SystemExit):
        command("ask", "kept", "Zebra?", "When was the mill built?")
    with pytest.raises(ConfigError, match="holds no 'texts/mil.txt'; did you mean"):
        command("ask", "kept", "Who?", "--within=texts/mil.txt")
    asked = command("ask", "kept", "When was the mill built?")
    assert "texts/mill.txt, piece 1" in asked and ": The mill was built in 1783." in asked
    found = result(command("ask", "kept", "What is checked?", "--json", "--pieces=1"))
    (answer,) = found["answers"]
    assert answer["pieces"][0]["document"] == "texts/pump.md" and "score" in answer["answer"]
    assert result(command("check", "kept")) == {"documents": 2, "problems": []}
    assert result(command("remove", "kept", "texts/pump.md"))["documents"] == 1
    assert len(result(command("list", "kept", "--json"))["documents"]) == 1


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_told_and_the_others_are_added(command, tmp_path, caplog):
    (tmp_path / "texts" / "empty.txt").write_text("")
    with pytest.raises(SystemExit) as ended:
        command("add", "kept", "texts", "nothing.txt")
    assert ended.value.code == 1
    told = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 2 and "empty.txt" in told[0] and "nothing.txt" in told[1]
    assert len(command("list", "kept").splitlines()) == 3


@pytest.mark.slow
def test_damage_is_told_and_is_an_exit_code(command, tmp_path, caplog):
    command("add", "kept", "texts")
    next((tmp_path / "kept" / "entries").iterdir()).write_bytes(b"damaged")
    (tmp_path / "kept" / "entries" / "left.tmp").write_bytes(b"half")
    with pytest.raises(SystemExit) as ended:
        command("check", "kept")
    assert ended.value.code == 1 and "has no checksum" in caplog.text
    assert not (tmp_path / "kept" / "entries" / "left.tmp").exists()


@pytest.mark.slow
def test_a_store_in_the_folder_that_is_added_is_left_out(command):
    command("add", "texts/kept", "texts")
    assert result(command("add", "texts/kept", "texts"))["files"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "what to do with a store: give one of add, ask, list"),
        (("ad", "kept"), "'ad' is nothing that is done with a store; did you mean 'add'"),
        (("add",), "which store\\? Give its folder: gistjax store add STORE FILE"),
        (("add", "kept"), "something is missing: gistjax store add STORE FILE"),
        (("ask", "kept", " "), "something is missing: gistjax store ask STORE"),
        (("ask", "kept", "Who?", ""), "word 2 after the store is empty: gistjax store ask STORE"),
        (("list", "kept", "mill.txt"), "too much: gistjax store list STORE"),
        (("list", "kept", "--ratio=8"), "--ratio is of `gistjax store add`"),
        (("add", "kept", "texts", "--within=a"), "--within is of `gistjax store ask`"),
    ],
)
def test_words_that_make_no_sense_are_refused_before_anything_is_loaded(
    command, words, message, monkeypatch
):
    monkeypatch.setattr(engine, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=message):
        command(*words)


@pytest.mark.parametrize("action", ["ask", "check", "list", "show", "remove"])
def test_a_store_that_is_not_there_is_told_before_anything_is_loaded(command, action, monkeypatch):
    monkeypatch.setattr(engine, "load", lambda *_: pytest.fail("loaded"))
    words = [action, "kept"] + ["x"] * bool(store.ACTIONS[action])
    with pytest.raises(CheckpointError, match="kept is no store: `gistjax store add kept FILE`"):
        command(*words)
