"""Texts of every encoding mark and line end, paths as people write them, poor terminals."""

import io
import json
import os
import subprocess
import sys
import unicodedata

import pytest
from absl import flags

from gistjax.config import CompressionConfig, DataConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.report import DataReport
from gistjax.data.text import load_articles
from gistjax.errors import DataError
from gistjax.inference.text import check_text, read_context
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path, plain_overrides, read_tuple
from gistjax.runtime.files import read_json, write_json
from gistjax.runtime.texts import decode, read_lines, unix_lines, user_path
from gistjax.sweep import read_sweep

TEXT = "Émile built the mill.\n\nIt burned down in 1790 🙂."
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
SPELT = {
    **{encoding: TEXT.encode(encoding) for encoding in ENCODINGS},
    "utf-16 big endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "CR": TEXT.replace("\n", "\r").encode(),
    "CRLF with a mark": TEXT.replace("\n", "\r\n").encode("utf-16"),
}


class Stdin(io.TextIOWrapper):
    """Standard input of some bytes, in a terminal that takes itself for ASCII."""

    def __init__(self, content):
        super().__init__(io.BufferedReader(io.BytesIO(content)), encoding="ascii")


@pytest.mark.parametrize("name", SPELT)
def test_one_text_is_the_same_from_a_file_from_standard_input_and_as_a_string(
    name, tmp_path, monkeypatch
):
    content = SPELT[name]
    file = tmp_path / "Ö text.txt"
    file.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert read_context([str(file)]) == read_context(["-"]) == TEXT
    assert (
        decode(content)
        == TEXT
        == check_text(
            content.decode(
                name
                if name in ENCODINGS
                else "utf-16"
                if "mark" in name or "big" in name
                else "utf-8"
            ),
            "context",
        )
    )
    with read_lines(Stdin(content)) as lines:
        assert [line.strip() for line in lines if line.strip()] == TEXT.split("\n\n")


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfea", "é".encode("latin-1") * 5])
def test_what_is_no_text_is_refused_by_name(content, tmp_path):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match=r"t is not UTF-8 text"):
        read_context([str(tmp_path / "t")])
    with (
        pytest.raises(DataError, match="standard input is not UTF-8"),
        read_lines(Stdin(content)) as lines,
    ):
        list(lines)


QUESTION = {"id": "q", "question": "What?", "answers": [{"text": "mill\r\nstood"}]}
ROW = {"title": None, "context": "The mill\r\nstood.", "question": "What?"}
ROW["answers"] = ["mill\nstood"]
SQUAD = {"data": [{"title": "É", "paragraphs": [{"context": ROW["context"], "qas": [QUESTION]}]}]}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_questions_of_every_encoding_with_nulls_blank_lines_and_line_ends(encoding, form, tmp_path):
    lines = ["", json.dumps(ROW, ensure_ascii=False), "  ", ""]
    text = json.dumps(SQUAD, ensure_ascii=False) if form == "json" else "\r\n".join(lines)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.{form}").write_bytes(text.encode(encoding))
    data = DataConfig(path=f" {tmp_path} ", train_examples=-1, validation_examples=-1)
    dataset = load_dataset(data, 0)
    for [example] in (dataset.train, dataset.validation):
        assert (example.context, example.answers) == ("The mill\nstood.", ("mill\nstood",))
        assert example.id in ("q", "train-0", "validation-0")
    assert not dataset.report.counts


NULLS = {
    "no id": {**ROW, "id": None},
    "no context": {**ROW, "context": None},
    "no question": {**ROW, "question": None},
    "no answers": {**ROW, "answers": None},
    "answers are not a list of texts": {**ROW, "answers": [None]},
}


@pytest.mark.parametrize("problem", NULLS)
def test_a_row_whose_value_is_null_is_counted(problem, tmp_path):
    rows = [json.dumps(row) for row in (NULLS[problem], *[ROW] * 20)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    data = DataConfig(path=str(tmp_path), train_examples=-1, validation_examples=0)
    dataset = load_dataset(data, 0)
    assert dataset.report.counts == {f"train: skipped, {problem}": 1}


@pytest.mark.parametrize(("of_context", "of_answer"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_answer_is_trained_on_in_the_contexts_own_normal_form(of_context, of_answer, tmp_path):
    name = "Émile Zoë"
    context = unicodedata.normalize(of_context, f"{name} built it.")
    row = {**ROW, "context": context, "answers": [unicodedata.normalize(of_answer, name)]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    data = DataConfig(path=str(tmp_path), train_examples=-1, validation_examples=0)
    [example] = load_dataset(data, 0).train
    assert example.answers[0] in example.context == context
    assert unicodedata.normalize("NFC", example.answers[0]) == name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_articles_of_every_encoding_with_blank_lines_between(encoding, tmp_path):
    lines = [
        "",
        json.dumps({"paragraphs": ["Émile\r\nbuilt.", "It stood."]}, ensure_ascii=False),
        "",
    ]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines * 3).encode(encoding))
    report = DataReport()
    assert list(load_articles(str(tmp_path), report, 0.0)) == ["Émile\nbuilt.\n\nIt stood."] * 3
    assert not report.counts


def test_json_files_may_have_a_mark_and_are_written_whatever_is_in_them(tmp_path):
    (tmp_path / "a.json").write_bytes(json.dumps({"a": "é"}).encode("utf-8-sig"))
    assert read_json(tmp_path / "a.json", DataError, "") == {"a": "é"}
    write_json(tmp_path / "b.json", {"title": "\udc80 é"})
    assert read_json(tmp_path / "b.json", DataError, "") == {"title": "\udc80 é"}


def test_paths_are_taken_as_people_write_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path(" ~/my runs/a ") == tmp_path / "my runs" / "a"
    assert str(user_path("~nobody-of-this-name/a")) == "~nobody-of-this-name/a"
    values = flags.FlagValues()
    define_path("workdir", "", "", values)
    define_path("context", "", "", values, many=True)
    values(["x", "--workdir=~/runs/a", "--context", "~/t.txt", "--context= - "])
    assert values["workdir"].value == str(tmp_path / "runs" / "a")
    assert values["context"].value == [str(tmp_path / "t.txt"), "-"]
    values(["x", "--workdir=  "])
    assert values["workdir"].value == ""
    assert cli.option(["x", "--run=~/r"], "run") == str(tmp_path / "r")
    assert cli.option(["x", "--run= "], "run", "shipped") == "shipped"


PATH_FLAGS = {
    "ask": ("context", "run", "save", "document"),
    "train": ("workdir",),
    "evaluate": ("run", "output", "slot_attention", "kept_entries"),
    "profile": ("run", "output"),
    "export": ("run", "output", "context"),
    "average": ("run", "output"),
    "compare": ("of", "with"),
    "report": ("runs", "write_to"),
    "sweep": ("sweep", "out"),
    "questions": ("folder", "to"),
}


@pytest.mark.parametrize("command", PATH_FLAGS)
def test_every_flag_that_takes_a_path_knows_the_home_directory(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    module, values = __import__(f"gistjax.{command}", fromlist=["main"]), flags.FlagValues()
    module.define_flags(values)
    for name in PATH_FLAGS[command]:
        values(["x", f"--{name}=~/a b"])
        found = values[name].value
        assert found in (str(tmp_path / "a b"), [str(tmp_path / "a b")]), name
        values.unparse_flags()
        values[name].unparse()


@pytest.mark.parametrize(
    "text", ["q,v", "(q,v,)", '["q", "v"]', "('q', 'v')", "[q, v]", " q , v ", '"q","v"', "q,v,"]
)
def test_a_tuple_is_given_in_any_spelling(text):
    assert read_tuple(text) == ("q", "v")
    argv = ["x", "--config.lora.targets=k", f"--config.lora.targets={text}", "--config.seed=3"]
    config = cli.parse(argv, lambda argv: CompressionConfig())
    assert (config.lora.targets, config.seed) == (("q", "v"), 3)
    two = cli.parse(["x", "--config.lora.targets", text], lambda argv: CompressionConfig())
    assert two.lora.targets == ("q", "v")


@pytest.mark.parametrize(
    ("text", "values"), [("", ()), ("()", ()), ("4", (4.0,)), ("2,4.5", (2, 4.5))]
)
def test_tuples_of_numbers(text, values):
    config = cli.parse(["x", f"--config.ratios={text}"], lambda argv: CompressionConfig())
    assert config.ratios == values
    assert plain_overrides(["x", "--config.init_from=a,b"]) == ["x", "--config.init_from=a,b"]


def test_a_sweep_has_lists_groups_and_a_mark_but_no_null(tmp_path):
    file = tmp_path / "s.json"
    run = {
        "name": "a{seed}",
        "config": "configs/seed/ablation.py",
        "set": {"lora": {"targets": ["q", "v"], "rank": 4}, "ratios": [2, 4.0]},
        "grid": {"seed": [1]},
        "seeds": None,
    }
    file.write_bytes(json.dumps({"set": None, "runs": [run]}).encode("utf-8-sig"))
    [found] = read_sweep(file, tmp_path, [])
    config = found.config()
    assert (config.lora.targets, config.lora.rank, config.ratios) == (("q", "v"), 4, (2, 4))
    run["set"]["init_from"] = None
    file.write_text(json.dumps({"runs": [run]}))
    with pytest.raises(cli.ConfigError, match="init_from is null"):
        read_sweep(file, tmp_path, [])


SHOWS = """
from gistjax.runtime import cli
def main():
    print("F1 … é \\udc80")
    cli.print_result({"answer": "Émile 🙂 \\udc80"})
cli.guard(main)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_show_a_text_gets_it_escaped(encoding):
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", SHOWS], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.decode(encoding).splitlines()
    assert first.startswith("F1 ")
    assert json.loads(last) == {"answer": "Émile 🙂 \udc80"}


def test_line_ends_and_a_mark_are_no_part_of_a_text():
    assert unix_lines("\ufeffa\r\nb\rc\n") == "a\nb\nc\n"
