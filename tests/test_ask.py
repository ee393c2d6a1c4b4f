"""The command, in this process, on a tiny random base."""

import io
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from absl import flags

from gistjax import ask
from gistjax.config import SelectConfig
from gistjax.errors import ConfigError, DataError, StorageError
from gistjax.experiment.run_dir import RunDir
from gistjax.inference import engine
from gistjax.inference.document import Answer
from gistjax.runtime import cli
from tests.helpers.runs import ASKED as CONFIG
from tests.helpers.runs import SELECTED, write_run

ENGINE = SimpleNamespace(config=CONFIG)
TEXT = "Ada wrote the first program. She lived in London."


@pytest.fixture(scope="module")
def rundir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "r8", CONFIG)


@pytest.fixture(scope="module")
def loaded():
    """Engines that were loaded, by run and configuration: each compiles its programs once."""
    return {}


@pytest.fixture
def command(rundir, loaded, tmp_path, monkeypatch):
    """Runs the command with some words, as `python -m gistjax.ask` would."""
    load, full_context = engine.load, engine.Engine.full_context

    def load_once(run, config):
        key = repr(config)
        return loaded.get(key) or loaded.setdefault(key, load(run, config))

    def full_once(of):
        key = f"full {of.config!r}"
        return loaded.get(key) or loaded.setdefault(key, full_context(of))

    monkeypatch.setattr(engine, "load", load_once)
    monkeypatch.setattr(engine.Engine, "full_context", full_once)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        values = flags.FlagValues()
        ask.define_flags(values)
        monkeypatch.setattr(sys, "argv", ["ask", f"--run={rundir}", *words])
        config, rest = cli._parse(sys.argv, lambda argv: RunDir(rundir).config(), values)
        ask.main(config, values, rest)

    return call


@pytest.mark.slow
def test_each_question_is_answered_from_slots_and_from_the_text(command, capsys):
    command("--context=text.txt", "Who wrote?", "--full", "Where?", "--json")
    out = json.loads(capsys.readouterr().out)
    assert out["tokens"] == len(TEXT) and out["slots"] == 7
    assert [row["question"] for row in out["answers"]] == ["Who wrote?", "Where?"]
    for row in out["answers"]:
        assert row["slots"]["positions"] == 7 and row["full_context"]["positions"] == len(TEXT)
        assert row["slots"]["seconds"] > 0 and row["full_context"]["seconds"] > 0


@pytest.mark.slow
def test_people_see_question_answer_and_cost(command, capsys):
    command("--context", "text.txt", "Who wrote?")
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"49 tokens in 7 slots \(2 kB\), compressed in \d+ ms", shown[0])
    assert shown[1] == "Who wrote?"
    assert re.search(r"7 slots, \d+ ms, \d+ ms a token$", shown[2])


def test_the_full_context_is_said_to_be_of_the_untuned_base(command, capsys):
    command("--context", "text.txt", "Who wrote?", "--full")
    shown = capsys.readouterr().out.splitlines()
    assert "untuned base" in shown[1] and shown[2] == "Who wrote?"
    assert shown[3].startswith("  from slots: ") and shown[4].startswith("  full context: ")
    assert re.search(r"49 tokens, \d+ ms, \d+ ms a token$", shown[4])


@pytest.mark.slow
def test_kept_entries_are_compared_with_all_of_them_and_long_texts_warned_of(
    tmp_path, monkeypatch, capsys, caplog
):
    config = SELECTED.replace(select=SelectConfig("knorm"))
    short = config.replace(
        target_length=32, data=replace(config.data, context_tokens=32, context_buckets=(32,))
    )
    rundir = write_run(tmp_path / "run", short)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    ask.define_flags(values)
    values(["ask", f"--run={rundir}", "--context=text.txt", "--full"])
    with caplog.at_level("WARNING"):
        ask.main(RunDir(rundir).config(), values, ["Who wrote?"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == ask.WHOLE and "49 tokens" in shown[4] and "13 entries" in shown[3]
    assert ask.UNTUNED not in shown
    assert "the text has 49 tokens, and the compressor was trained on at most 32" in caplog.text
    caplog.clear()
    values(["ask", f"--run={write_run(tmp_path / 'longer', config)}", "--context=text.txt"])
    ask.main(config, values, ["Who wrote?"])
    assert "trained on at most" not in caplog.text


def test_each_answer_stands_under_its_own_title_with_its_own_cost():
    slots = Answer("", 7, 0.5, 2, score=0.123, calibrated=True, written="by slots")
    full = Answer("by the text", 49, 3.0, 4, score=0.9, calibrated=False, written="by the text")
    document = SimpleNamespace(engine=ENGINE)
    document.ask = lambda question, threshold: (
        slots if (question, threshold) == ("Who?", 0.4) else None
    )
    text = SimpleNamespace(ask=lambda question: full if question == "Who?" else None)
    both = ask.Exchange.of("Who?", document, text, 0.4)
    assert str(both).splitlines() == [
        "Who?",
        f"  from slots:   {'(no answer) (12%)':40}  7 slots, 500 ms, 250 ms a token",
        f"  full context: {'by the text':40}  49 tokens, 3000 ms, 750 ms a token",
    ]
    assert {key: both.to_json()[key]["text"] for key in ("slots", "full_context")} == {
        "slots": "",
        "full_context": "by the text",
    }
    assert both.to_json()["slots"] == {
        "text": "", "positions": 7, "seconds": 0.5, "tokens": 2,
        "score": 0.123, "calibrated": True, "written": "by slots",
    }  # fmt: skip
    alone = ask.Exchange.of("Who?", document, None, 0.4)
    assert (
        str(alone).splitlines()[1] == f"  {'(no answer) (12%)':40}  7 slots, 500 ms, 250 ms a token"
    )
    assert alone.to_json().keys() == {"question", "slots"}


@pytest.mark.parametrize(
    ("architecture", "slots", "says"),
    [
        ("closed_book", 0, "reads no text"),
        ("none", 49, "compresses nothing: 49 of 49 tokens are read as they are"),
    ],
)
def test_a_control_is_said_to_compress_nothing(architecture, slots, says):
    answer = Answer("by the run", slots, 0.5, 2, 0.9, False, "by the run")
    control = SimpleNamespace(config=CONFIG.replace(architecture=architecture))
    document = SimpleNamespace(engine=control, tokens=49, slots=slots, nbytes=0, seconds=0.25)
    document.ask = lambda question, threshold: answer
    assert says in ask.about(document) and "compressed in" not in ask.about(document)
    assert f"  {slots} tokens, 500 ms" in str(ask.Exchange.of("Who?", document, None, None))


def test_the_help_says_whose_values_hold(command, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", ask.__doc__)
    with pytest.raises(SystemExit):
        command("--helpfull")
    shown = capsys.readouterr().out
    assert "keys, with the defaults of training (of a run given, its own values hold):" in shown


def test_mistakes_are_told_before_anything_is_loaded(command, monkeypatch):
    monkeypatch.setattr(engine, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="question is empty"):
        command("--context=text.txt", " ")
    with pytest.raises(ConfigError, match=r"no.safetensors is no file: give one that --save"):
        command("--document=no.safetensors", "Who?")
    with pytest.raises(ConfigError, match="ratio=1: this compressor was trained with 8"):
        command("--context=text.txt", "--ratio=1", "Who?")


def test_what_was_compressed_is_said_in_units_for_people():
    size = {"nbytes": 2_000, "resident_bytes": 2_100}
    read = {"engine": ENGINE, "tokens": 49, "slots": 7, "refined": 0}
    document = SimpleNamespace(**read, **size, seconds=0.25)
    assert ask.about(document) == "49 tokens in 7 slots (2 kB), compressed in 250 ms"
    opened = SimpleNamespace(**read, nbytes=400_000, seconds=0.0)
    assert ask.about(opened) == "49 tokens in 7 slots (0.4 MB)"
    assert [ask.megabytes(size) for size in (99_000, 100_000)] == ["99 kB", "0.1 MB"]
    full = SimpleNamespace(seconds=1.5)
    found = ask.summary(document, full, [])
    assert (found["compress_s"], found["full_context_read_s"]) == (0.25, 1.5)
    assert (found["tokens"], found["slots"], found["bytes"]) == (49, 7, 2_000)


@pytest.mark.slow
def test_every_context_is_asked_about(command, capsys, tmp_path):
    (tmp_path / "more.txt").write_text(TEXT)
    command("--context=text.txt", "--context", "more.txt", "Who wrote?", "--json")
    assert json.loads(capsys.readouterr().out)["tokens"] == 2 * len(TEXT) + 2


@pytest.mark.slow
def test_a_keyboard_is_told_how_to_leave(command, capsys, monkeypatch):
    lines = iter(["Who wrote?", ""])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    command("--context", "text.txt")
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "One question a line; an empty line or CTRL-D ends."
    assert shown[2] == "Who wrote?" and len(shown) == 4


def test_a_ratio_is_checked(command):
    command("--context=text.txt", "Who wrote?", "--ratio=8", "--json")
    with pytest.raises(ConfigError, match="trained with 8 tokens a slot"):
        command("--context=text.txt", "Who wrote?", "--ratio=2")
    with pytest.raises(ConfigError, match="trained with 8 tokens a slot"):
        command("--context=text.txt", "Who wrote?", "--ratio=0")
    with pytest.raises(ConfigError, match="give one of them"):
        command("--document=kept", "--context=text.txt", "Who wrote?")
    with pytest.raises(ConfigError, match="--ratio is for compressing"):
        command("--document=kept", "Who wrote?", "--ratio=2")


@pytest.mark.slow
def test_text_or_questions_come_from_standard_input(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    command("--context=-", "Who wrote?", "--json")
    from_text = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who wrote?\n\nWhere?\n"))
    command("--context=text.txt", "--json")
    from_lines = json.loads(capsys.readouterr().out)
    assert [row["question"] for row in from_lines["answers"]] == ["Who wrote?", "Where?"]
    assert from_lines["answers"][0]["slots"]["text"] == from_text["answers"][0]["slots"]["text"]


@pytest.mark.slow
def test_a_document_is_asked_without_the_text(command, capsys, tmp_path):
    command("--context=text.txt", "Who wrote?", "--save=kept.safetensors", "--json")
    before = json.loads(capsys.readouterr().out)
    assert before["saved_bytes"] == (tmp_path / "kept.safetensors").stat().st_size
    (tmp_path / "text.txt").unlink()
    command("--document=kept.safetensors", "Who wrote?", "--json")
    after = json.loads(capsys.readouterr().out)
    assert after["answers"][0]["slots"]["text"] == before["answers"][0]["slots"]["text"]


@pytest.mark.slow
def test_where_a_document_is_kept_is_said_and_what_it_replaces(command, caplog, tmp_path):
    caplog.set_level("INFO")
    for said in (
        "kept in kept.safetensors, 2 kB",
        "kept in kept.safetensors, 2 kB, in place of the one that was there",
    ):
        command("--context=text.txt", "Who wrote?", "--save=kept.safetensors", "--json")
        assert caplog.messages[-1] == said
    (tmp_path / "mine.txt").write_text("Mine.")
    with pytest.raises(ConfigError, match="mine.txt is there and no saved document"):
        command("--context=text.txt", "Who wrote?", "--save=mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "Mine."


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["Who?"], ConfigError, "which text"),
        (["--context=text.txt", "--document=x", "Who?"], ConfigError, "give one of them"),
        (["--document=x", "--full", "Who?"], ConfigError, "--full reads the text"),
        (["text.txt", "Who?"], ConfigError, "Give --context text.txt"),
        (
            ["--context=text.txt", "binary", "Who?"],
            ConfigError,
            "--context text.txt --context binary",
        ),
        (["--context=-"], ConfigError, "give the questions as arguments"),
        (["--context=missing.txt", "Who?"], DataError, "missing.txt cannot be read: No such file"),
        (["--context=Ada wrote it.", "Who?"], DataError, "pipe it into --context -"),
        (["--context=.", "Who?"], DataError, "Is a directory"),
        (["--context=binary", "Who?"], DataError, "not UTF-8 text"),
        (["--context=empty", "Who?"], DataError, "context is empty"),
        (["--context=zeros", "Who?"], DataError, "zeros is no text: it has zero bytes"),
        (
            ["--context=text.txt", "\udcff who?"],
            DataError,
            "question is no UTF-8 text .*at character 0",
        ),
        (["--context=text.txt", "--save=text.txt", "Who?"], ConfigError, "is the text itself"),
        (["--context=text.txt", "--bits=4", "Who?"], ConfigError, "--bits is of --save FILE"),
        (["--context=text.txt", "--save=none/x", "Who?"], StorageError, "there is no folder none"),
        (["--context=text.txt", "--threshold=1.5", "Who?"], ConfigError, "threshold=1.5: give"),
        (["--context=text.txt", "--threshold=nan", "Who?"], ConfigError, "threshold=nan: give"),
        (["--context=text.txt", "--threshold=0.5", "Who?"], ConfigError, "has no calibration"),
        (
            ["--context=text.txt", "--config.ratio=100", "Who?"],
            ConfigError,
            "trained with 8 tokens a slot",
        ),
    ],
)
def test_mistakes_are_named(command, words, error, says, tmp_path):
    (tmp_path / "binary").write_bytes(b"%PDF-1.7 \xff\xfe")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "zeros").write_bytes(b"a\0b")
    with pytest.raises(error, match=says):
        command(*words)


def test_bits_of_a_whole_context_are_refused():
    asked = SimpleNamespace(bits="4", save="file")
    with pytest.raises(ConfigError, match="--bits is of slots or kept entries"):
        ask.check_bits(CONFIG.replace(architecture="none"), asked)
    ask.check_bits(CONFIG, asked)
