"""Compress once, ask often: on a tiny random base, against the answers of the evaluation."""

import dataclasses
import gc
import json
import shutil
import weakref

import numpy as np
import pytest

import gistjax
from gistjax.compress.parameters import split_model
from gistjax.config import ModelConfig, SelectConfig
from gistjax.data import facts
from gistjax.errors import CheckpointError, ConfigError, DataError
from gistjax.evaluate import evaluate_run
from gistjax.experiment import base, evaluator
from gistjax.inference.engine import KEPT_REFINERS
from gistjax.runtime import cli
from tests.helpers.runs import ASKED as CONFIG
from tests.helpers.runs import SELECTED, write_run


@pytest.mark.slow
def test_answers_are_those_of_the_evaluation(rundir, engine, examples, tmp_path):
    evaluate_run(rundir, output=tmp_path / "predictions.json")
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    for example, row in zip(examples, predictions, strict=True):
        document = engine.compress(example.context)
        answer = document.ask(example.question)
        assert answer.text == row["prediction"] and answer.text
        assert answer.positions == document.slots == -(-document.tokens // 8)
        assert answer.seconds > 0 and document.seconds > 0


def test_a_run_is_not_loaded_in_another_meaning(rundir):
    """From the configurations alone, before the base is read."""
    with pytest.raises(ConfigError, match="slot_start: .* trained with another value"):
        gistjax.load(rundir, CONFIG.replace(slot_start="window_ends"))


@pytest.mark.slow
def test_the_full_context_is_read_token_by_token(engine, examples):
    full = engine.full_context().compress(examples[0].context)
    assert full.slots == full.tokens == engine.compress(examples[0].context).tokens
    assert full.ask(examples[0].question).positions == full.tokens
    with pytest.raises(ConfigError, match="bits=4: this model keeps nothing of a text"):
        full.engine.compress(examples[0].context, bits=4)


@pytest.mark.slow
def test_the_full_context_answers_as_the_baseline_of_the_evaluation(
    rundir, engine, examples, monkeypatch
):
    scored, score = [], evaluator.score
    monkeypatch.setattr(evaluator, "score", lambda *given: scored.append(given[0]) or score(*given))
    both = dataclasses.replace(CONFIG.evaluation, baseline=True, shuffled=False)
    evaluate_run(rundir, CONFIG.replace(evaluation=both))
    full = engine.full_context()
    answers = [full.compress(example.context).ask(example.question).text for example in examples]
    assert answers == scored[1] != scored[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "select", [SelectConfig("knorm"), SelectConfig("knorm", bytes=4096), SelectConfig("conv")]
)
def test_the_full_context_of_kept_entries_is_the_same_model(examples, tmp_path, select):
    """No second one is loaded; it keeps what the budget would throw away."""
    config = SELECTED.replace(select=select, ratio=0.0 if select.bytes else 8.0)
    engine = gistjax.load(write_run(tmp_path / "run", config))
    full, text = engine.full_context(), examples[0].context
    assert all(x is y for x, y in zip(full.programs.leaves, engine.programs.leaves, strict=True))
    document = full.compress(text)
    assert engine.compress(text).slots < document.slots == document.tokens
    all_kept = SELECTED.replace(select=SelectConfig(select.scorer), ratio=1.0)
    whole = gistjax.load(write_run(tmp_path / "whole", all_kept))
    question = examples[0].question
    ours, theirs = document.ask(question), whole.compress(text).ask(question)
    assert ours.text == theirs.text and ours.score == pytest.approx(theirs.score, rel=1e-4)


def test_refiners_of_the_last_ratios_stay(engine):
    """Each holds compiled programs, which those of other ratios do not share."""
    first = weakref.ref(engine.refiner(4.0))
    assert engine.refiner(4.0) is first()
    for number in range(KEPT_REFINERS):
        engine.refiner(5.0 + number)
    gc.collect()
    assert first() is None


@pytest.mark.slow
def test_one_compressor_at_several_ratios(examples, tmp_path):
    trained = CONFIG.replace(
        ratio=4.0, ratios=(2.0, 8.0), slot_form="key_values", slot_positions="packed"
    )
    rundir = write_run(tmp_path / "run", trained)
    engine = gistjax.load(rundir)
    example = examples[0]
    for ratio in (2.0, 8.0):
        document = engine.compress(example.context, ratio)
        assert document.slots == min(-(-document.tokens // ratio), 64)
        set_so = gistjax.load(rundir, trained.replace(ratio=ratio)).compress(example.context)
        assert document.ask(example.question).text == set_so.ask(example.question).text
    assert engine.compress(example.context).slots == 64
    for ratio in (1.0, 9.0, float("nan")):
        with pytest.raises(ConfigError, match="trained with 2 to 8 tokens a slot"):
            engine.compress(example.context, ratio)


@pytest.mark.slow
def test_a_budget_in_bytes_may_take_the_place_of_ratios_and_ratios_its_own(examples, tmp_path):
    drawn = SELECTED.replace(select=SelectConfig("knorm"), ratio=4.0, ratios=(2.0, 8.0))
    fixed = SELECTED.replace(select=SelectConfig("knorm", bytes=4096), ratio=0.0, ratios=())
    rundir = write_run(tmp_path / "run", drawn)
    small = gistjax.load(rundir, fixed).compress(examples[0].context)
    assert small.slots < gistjax.load(rundir).compress(examples[0].context).slots
    again = gistjax.load(write_run(tmp_path / "fixed", fixed), drawn)
    assert again.compress(examples[0].context).slots > small.slots


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        SELECTED.replace(select=SelectConfig("conv", "all"), ratio=4.0, ratios=(4.0, 8.0)),
        CONFIG.replace(ratios=(4.0, 8.0)),
        CONFIG.replace(slot_form="key_values", slot_positions="packed"),
    ],
    ids=["entries", "soft_tokens", "key_values"],
)
def test_texts_read_together_are_those_read_alone(config, examples, tmp_path):
    """Rows share a program with others of their size, full batches and what is left of them."""
    engine = gistjax.load(write_run(tmp_path / "run", config))
    engine.tokens_at_once = 64  # eight rows, on eight devices
    question, *_ = (example.question for example in examples)
    texts = [f"Note {n} is on the mill." for n in range(9)]
    texts[3:3] = [f"{example.context[:100]}." for example in examples[:2]]
    ratio = max(config.ratios, default=None)
    together = engine.compress_many(texts, ratio)
    for text, document in zip(texts, together, strict=True):
        alone = engine.compress(text, ratio)
        assert (document.tokens, document.pieces) == (alone.tokens, 1) and document.seconds > 0
        ours, theirs = document.stored(), alone.stored()
        assert ours.form == theirs.form and ours.positions == theirs.positions
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in ours.arrays.items():
            np.testing.assert_allclose(array, theirs.arrays[name], rtol=1e-4, atol=1e-5)
    document.save(tmp_path / "document")
    opened = engine.open(tmp_path / "document").ask(question)
    ours, theirs = document.ask(question), alone.ask(question)
    assert opened.written == ours.written == theirs.written
    assert opened.score == pytest.approx(theirs.score, rel=1e-3)
    few = engine.compress_many(texts[:2], ratio, bits=8)
    assert [document.stored().bits for document in few] == [8, 8]
    with pytest.raises(DataError, match="takes a list of texts"):
        engine.compress_many(texts[0])


@pytest.mark.slow
def test_pieces_of_several_long_texts_are_joined_each_to_its_own(tmp_path):
    """At the lengths of training, which are short."""
    short = dataclasses.replace(CONFIG.data, context_tokens=64, context_buckets=(64,))
    engine = gistjax.load(write_run(tmp_path / "run", CONFIG.replace(data=short)))
    texts = ["The mill is of oak. " * 8, "A word.", "The pump is checked every spring. " * 6]
    for text, document in zip(texts, engine.compress_many(texts), strict=True):
        alone = engine.compress(text)
        assert (document.pieces, document.slots) == (alone.pieces, alone.slots)
        np.testing.assert_allclose(
            document.context.x_BxXxD, alone.context.x_BxXxD, rtol=1e-4, atol=1e-5
        )


def test_what_is_no_text_is_refused_and_a_document_is_shown_in_short(engine, examples):
    document = engine.compress(examples[0].context)
    assert repr(document) == f"Document({document.tokens} tokens in {document.slots} slots)"
    with pytest.raises(DataError, match="context must be one text .* not NoneType"):
        engine.compress(None)
    with pytest.raises(DataError, match="question must be a text .* not dict"):
        document.ask({"Who?": 1})
    for no_path in (document, 3, None):
        with pytest.raises(ConfigError, match="must be given as text or a path"):
            engine.open(no_path)
        with pytest.raises(ConfigError, match="must be given as text or a path"):
            gistjax.load(no_path)


def test_a_ratio_needs_a_compressor_that_has_one(engine, examples, tmp_path):
    with pytest.raises(ConfigError, match="trained with 8 tokens a slot"):
        engine.compress(examples[0].context, 4.0)
    fixed = gistjax.load(write_run(tmp_path / "run", CONFIG.replace(ratio=0.0)))
    for wrong in ("4", True, [4]):
        with pytest.raises(ConfigError, match=f"must be a number .*not {type(wrong).__name__}"):
            engine.compress(examples[0].context, wrong)
    for without, says in (
        (engine.full_context(), "no number of tokens a slot"),
        (fixed, "slots for any context"),
    ):
        with pytest.raises(ConfigError, match=says):
            without.compress(examples[0].context, 8.0)


@pytest.mark.slow
def test_packed_slots_of_one_piece_and_of_several_are_asked_in_turn(tmp_path):
    """In one shape: a program is compiled for each shape and dtype."""
    data = dataclasses.replace(CONFIG.data, context_tokens=256, context_buckets=(256,))
    packed = CONFIG.replace(slot_positions="packed", ratios=(4.0, 8.0), data=data)
    engine, text = gistjax.load(write_run(tmp_path / "run", packed)), "Ada wrote a program. " * 18
    one, several = engine.compress(text[:250], 4.0), engine.compress(text, 8.0)
    assert (one.pieces, several.pieces) == (1, 2)
    assert one.context.x_BxXxD.shape == several.context.x_BxXxD.shape
    assert one.ask("Who wrote?").positions == 63 and several.ask("Who wrote?").positions < 63


@pytest.mark.slow
def test_long_texts_are_compressed_in_pieces(engine, examples, monkeypatch):
    text = " ".join(dict.fromkeys(example.context for example in examples))
    compress = engine.programs.compress
    monkeypatch.setattr(engine.programs, "compress", lambda *given: (compress(*given)[0], 0.25))
    document = engine.compress(text[:1500])
    assert document.seconds == 0.25 * document.pieces
    assert document.pieces >= 3 and document.tokens > 2 * engine.trained_tokens
    assert document.slots >= document.tokens / 8
    used = document.context.position_BxX[0, : document.slots]
    assert np.all(np.diff(used) > 0) and used[-1] < document.tokens == document.context.length_B[0]
    assert isinstance(document.ask(examples[0].question).text, str)


@pytest.mark.slow
def test_limits_are_named(engine, tmp_path):
    with pytest.raises(DataError, match="context is empty"):
        engine.compress(" \n ")
    with pytest.raises(DataError, match=r"has 2100 tokens, but tiny-random reads at most 1\d\d\d"):
        engine.compress("a" * 2100)
    with pytest.raises(DataError, match="100000 characters"):
        engine.compress("a" * 100_000)
    document = engine.compress("Ada wrote it.")
    with pytest.raises(DataError, match="question is empty"):
        document.ask(" ")
    with pytest.raises(DataError, match="question has 9.. tokens, more than 512"):
        document.ask("why " * 220)
    full = engine.compress("a" * engine.max_tokens)
    assert full.ask("Who wrote it?").positions == full.slots
    with pytest.raises(DataError, match="question has 1.. tokens, and tiny-random has room for 64"):
        full.ask("why " * 40)
    kept = CONFIG.replace(slot_form="key_values", slot_positions="packed")
    with pytest.raises(
        DataError,
        match=r"600 tokens, 88 too many: .*keys and values hold at most 512 "
        r"\(about 100 of its 120 words\)",
    ):
        gistjax.load(write_run(tmp_path, kept)).compress("four " * 119 + "fives")


def test_another_base_is_refused(rundir, tmp_path):
    other = shutil.copytree(rundir, tmp_path / "other")
    config = dataclasses.replace(CONFIG, model=ModelConfig("tiny-random", dtype="bfloat16"))
    with pytest.raises(CheckpointError, match="other base weights"):
        gistjax.load(other, config)


@pytest.mark.slow
def test_the_base_of_the_quickstart_answers_from_a_paragraph():
    config = base.untuned_full_context(cli.read_config_file("quickstart.py"))
    pretrained = base.load_pretrained(config)
    weights = split_model(base.build_model(config, pretrained))
    context, questions = facts.paragraph(np.random.default_rng(0))
    paragraph = gistjax.Engine(config, pretrained, weights, "").compress(context)
    right = [paragraph.ask(question).text == answer for question, answer in questions]
    assert sum(right) >= 9


@pytest.mark.slow
def test_evaluating_at_a_ratio_that_was_not_trained_is_said(rundir, caplog):
    evaluate_run(rundir, CONFIG.replace(ratio=16.0))
    assert "trained with 8 tokens a slot" in caplog.text
