"""Compress once, ask often: on a tiny random base, against the answers of the evaluation."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gistjax
from gistjax.config import ModelConfig
from gistjax.data import facts
from gistjax.data.dataset import load_dataset
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.evaluate import evaluate_run
from gistjax.experiment import base as assembly
from gistjax.runtime import cli
from gistjax.runtime.tensors import load_tensors, save_tensors
from gistjax.training.step import split_model
from tests.helpers.runs import ASKED as CONFIG
from tests.helpers.runs import write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rundir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "r8", CONFIG)


@pytest.fixture(scope="module")
def reader(rundir):
    return gistjax.load(rundir)


@pytest.fixture(scope="module")
def examples():
    return load_dataset(CONFIG.data, CONFIG.seed).validation


def test_answers_are_those_of_the_evaluation(rundir, reader, examples, tmp_path):
    evaluate_run(rundir, output=tmp_path / "predictions.json")
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    for example, row in zip(examples, predictions, strict=True):
        memory = reader.compress(example.context)
        answer = memory.ask(example.question)
        assert answer.text == row["prediction"] and answer.text
        assert answer.positions == memory.slots == -(-memory.tokens // 8)
        assert answer.seconds > 0 and memory.seconds > 0


def test_the_full_context_is_read_token_by_token(reader, examples):
    full = reader.full_context().compress(examples[0].context)
    assert full.slots == full.tokens == reader.compress(examples[0].context).tokens
    assert full.ask(examples[0].question).positions == full.tokens


def test_one_compressor_at_several_ratios(examples, tmp_path):
    trained = CONFIG.replace(ratio=4.0, ratios=(2.0, 8.0), slot_form="key_values", slot_positions="packed")  # fmt: skip
    rundir = write_run(tmp_path / "run", trained)
    reader = gistjax.load(rundir)
    example = examples[0]
    for ratio in (2.0, 8.0):
        memory = reader.compress(example.context, ratio)
        assert memory.slots == min(-(-memory.tokens // ratio), 64)
        set_so = gistjax.load(rundir, trained.replace(ratio=ratio)).compress(example.context)
        assert memory.ask(example.question).text == set_so.ask(example.question).text
    assert reader.compress(example.context).slots == 64
    for ratio in (1.0, 9.0, float("nan")):
        with pytest.raises(ConfigError, match="trained with 2 to 8 tokens a slot"):
            reader.compress(example.context, ratio)


def test_what_is_no_text_is_refused_and_a_memory_is_shown_in_short(reader, examples):
    memory = reader.compress(examples[0].context)
    assert repr(memory) == f"CompressedText({memory.tokens} tokens in {memory.slots} slots)"
    with pytest.raises(DataError, match="context must be one text .* not NoneType"):
        reader.compress(None)
    with pytest.raises(DataError, match="question must be one text .* not list"):
        memory.ask(["Who?", "When?"])


def test_a_ratio_needs_a_compressor_that_has_one(reader, examples, tmp_path):
    with pytest.raises(ConfigError, match="trained with 8 tokens a slot"):
        reader.compress(examples[0].context, 4.0)
    fixed = gistjax.load(write_run(tmp_path / "run", CONFIG.replace(ratio=0.0)))
    for without, says in (
        (reader.full_context(), "no number of tokens a slot"),
        (fixed, "slots for any context"),
    ):
        with pytest.raises(ConfigError, match=says):
            without.compress(examples[0].context, 8.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"slot_form": "key_values", "slot_positions": "packed"},
        {"slot_form": "key_values", "model": ModelConfig("tiny-random", dtype="float32", scan_layers=True)},
    ],
)  # fmt: skip
def test_a_saved_memory_answers_as_before(changes, examples, tmp_path):
    reader = gistjax.load(write_run(tmp_path / "run", CONFIG.replace(**changes)))
    memory = reader.compress(examples[0].context)
    memory.save(tmp_path / "memory.safetensors")
    opened = gistjax.load(tmp_path / "run").open(tmp_path / "memory.safetensors")
    assert (opened.tokens, opened.slots, opened.pieces) == (memory.tokens, memory.slots, 1)
    for example in examples:
        assert opened.ask(example.question).text == memory.ask(example.question).text


def test_a_memory_of_another_compressor_is_refused(reader, examples, tmp_path):
    reader.compress(examples[0].context).save(tmp_path / "memory.safetensors")
    other = write_run(tmp_path / "other", CONFIG.replace(seed=1))
    with pytest.raises(
        CheckpointError, match=r"another compressor \(SHA-256 .*compress the text again"
    ):
        gistjax.load(other).open(tmp_path / "memory.safetensors")


def test_what_is_no_memory_is_refused(reader, rundir, tmp_path):
    with pytest.raises(CheckpointError, match="holds no compressed text"):
        reader.open(rundir / "compressor.safetensors")
    with pytest.raises(CheckpointError, match="cannot read .*missing: No such file"):
        reader.open(tmp_path / "missing")
    (tmp_path / "text").write_text("no safetensors at all")
    with pytest.raises(CheckpointError, match="text has no checksum"):
        reader.open(tmp_path / "text")


def test_a_memory_without_all_of_its_arrays_is_refused(reader, examples, tmp_path):
    file = tmp_path / "memory"
    reader.compress(examples[0].context).save(file)
    arrays, metadata = load_tensors(file)
    del metadata["sha256"]
    for broken in (
        ({name: a for name, a in arrays.items() if name != "slots_B"}, metadata),
        (arrays, {**metadata, "tokens": "many"}),
    ):
        save_tensors(file, *broken)
        with pytest.raises(CheckpointError, match="no whole compressed text"):
            reader.open(file)


def test_packed_slots_of_one_piece_and_of_several_are_asked_in_turn(tmp_path):
    """In one shape: a program is compiled for each shape and dtype."""
    data = dataclasses.replace(CONFIG.data, context_tokens=256, context_buckets=(256,))
    packed = CONFIG.replace(slot_positions="packed", ratios=(4.0, 8.0), data=data)
    reader, text = gistjax.load(write_run(tmp_path / "run", packed)), "Ada wrote a program. " * 18
    one, several = reader.compress(text[:250], 4.0), reader.compress(text, 8.0)
    assert (one.pieces, several.pieces) == (1, 2)
    assert one.memory.x_BxXxD.shape == several.memory.x_BxXxD.shape
    assert one.ask("Who wrote?").positions == 63 and several.ask("Who wrote?").positions < 63


def test_long_texts_are_compressed_in_pieces(reader, examples):
    text = " ".join(dict.fromkeys(example.context for example in examples))
    memory = reader.compress(text[:1500])
    assert memory.pieces >= 3 and memory.tokens > 2 * reader.trained_tokens
    assert memory.slots >= memory.tokens / 8
    used = memory.memory.position_BxX[0, : memory.slots]
    assert np.all(np.diff(used) > 0) and used[-1] < memory.tokens == memory.memory.length_B[0]
    assert isinstance(memory.ask(examples[0].question).text, str)


def test_limits_are_named(reader, tmp_path):
    with pytest.raises(DataError, match="context is empty"):
        reader.compress(" \n ")
    with pytest.raises(DataError, match=r"has 2100 tokens, but tiny-random reads at most 1\d\d\d"):
        reader.compress("a" * 2100)
    with pytest.raises(DataError, match="100000 characters"):
        reader.compress("a" * 100_000)
    memory = reader.compress("Ada wrote it.")
    with pytest.raises(DataError, match="question is empty"):
        memory.ask(" ")
    with pytest.raises(DataError, match="question has 9.. tokens, more than 512"):
        memory.ask("why " * 220)
    full = reader.compress("a" * reader.max_tokens)
    assert full.ask("Who wrote it?").positions == full.slots
    with pytest.raises(DataError, match="question has 1.. tokens, and tiny-random has room for 64"):
        full.ask("why " * 40)
    kept = CONFIG.replace(slot_form="key_values", slot_positions="packed")
    with pytest.raises(DataError, match="keys and values hold at most 512"):
        gistjax.load(write_run(tmp_path, kept)).compress("a" * 600)


def test_another_base_is_refused(rundir, tmp_path):
    other = shutil.copytree(rundir, tmp_path / "other")
    config = dataclasses.replace(CONFIG, model=ModelConfig("tiny-random", dtype="bfloat16"))
    with pytest.raises(CheckpointError, match="other base weights"):
        gistjax.load(other, config)


def test_the_base_of_the_quickstart_answers_from_a_paragraph():
    config = assembly.untuned_full_context(cli.read_config_file(ROOT / "configs/quickstart.py"))
    pretrained = assembly.load_pretrained(config)
    weights = split_model(assembly.model_on(config, pretrained))
    context, questions = facts.paragraph(np.random.default_rng(0))
    paragraph = gistjax.Engine(config, pretrained, weights, "").compress(context)
    right = [paragraph.ask(question).text == answer for question, answer in questions]
    assert sum(right) >= 9


def test_evaluating_at_a_ratio_that_was_not_trained_is_said(rundir, caplog):
    evaluate_run(rundir, CONFIG.replace(ratio=16.0))
    assert "trained with 8 tokens a slot" in caplog.text
