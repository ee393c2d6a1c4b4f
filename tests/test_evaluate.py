"""What a finished run is scored on: the split that the command asks for, in one order."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

import gistjax
from gistjax import evaluate
from gistjax.config import CompressionConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.prompts import make_prompt
from gistjax.errors import ConfigError
from gistjax.evaluation.treatment import Treatment
from gistjax.experiment.confidence import Calibration, Confidence, write_calibration
from gistjax.experiment.evaluator import EvalResult
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.files import write_json
from gistjax.runtime.tensors import load_tensors
from gistjax.weights.tokenizers import byte_tokenizer
from tests.helpers.runs import ASKED, SELECTED, write_run

PREDICTIONS = [{"id": f"{i}", "f1": i / 8} for i in range(8)]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A run directory, and what its evaluators are given."""
    made = []

    class Evaluator:
        def __init__(self, *given):
            made.append(given)

        def measure(self, trainable, frozen):
            return EvalResult({"final_f1": 0.75}, PREDICTIONS, [{"context_id": 3}])

    pretrained = SimpleNamespace(prompt=make_prompt(byte_tokenizer()))
    monkeypatch.setattr(evaluate, "load_trained", lambda *_: (pretrained, ("graph", 1, 2)))
    monkeypatch.setattr(evaluate, "Evaluator", Evaluator)
    write_json(tmp_path / "config.json", {"config": ASKED.to_json()})
    return tmp_path, made


def test_a_run_is_scored_on_its_own_split_or_another(measured):
    run, made = measured
    data = dataclasses.replace(ASKED.data, validation_examples=7, context_tokens=100)
    files = run / "predictions", run / "attention"
    assert evaluate.evaluate_run(run) == {"final_f1": 0.75}
    evaluate.evaluate_run(run, ASKED.replace(data=data), *files)
    assert [json.loads(file.read_text()) for file in files] == [PREDICTIONS, [{"context_id": 3}]]
    for (config, _, rows, examples, graph, confidence, treatment), n, longest in zip(
        made, (4, 7), (422, 100), strict=True
    ):
        assert len(rows) == len(examples) == config.data.validation_examples == n
        assert [row.example_index for row in rows] == list(range(n)) and graph == "graph"
        assert confidence == Confidence() and treatment == Treatment()
        assert [row.context_id for row in rows] == [example.context_id for example in examples]
        assert max(len(row.context_ids) for row in rows) == longest


def test_no_question_and_another_meaning_are_refused(measured):
    none = dataclasses.replace(ASKED.data, validation_examples=0)
    with pytest.raises(ConfigError, match="no question is asked for"):
        evaluate.evaluate_run(measured[0], ASKED.replace(data=none))
    with pytest.raises(ConfigError, match="architecture: .* trained with another value"):
        evaluate.evaluate_run(measured[0], ASKED.replace(architecture="mean_pool"))
    with pytest.raises(ConfigError, match="architecture cannot be 'selekt'; did you mean 'select'"):
        evaluate.evaluate_run(measured[0], ASKED.replace(architecture="selekt"))


def test_a_threshold_takes_the_calibration_of_the_run(measured):
    run, made = measured
    with pytest.raises(ConfigError, match="no calibration"):
        evaluate.evaluate_run(run, threshold=0.5)
    (run / "compressor.safetensors").write_bytes(b"weights")
    write_calibration(RunDir(run), Calibration(2.0, 1.0), {})
    evaluate.evaluate_run(run, threshold=0.5)
    assert made[-1][5] == Confidence(Calibration(2.0, 1.0), 0.5)
    evaluate.evaluate_run(run)
    assert made[-1][5] == Confidence(Calibration(2.0, 1.0))


@pytest.mark.parametrize(
    ("config", "bits", "says"),
    [
        (ASKED.replace(architecture="none"), 8, "architecture='none' has none"),
        (SELECTED, 5, "bits=5: contexts are saved in"),
        (
            SELECTED.replace(data=dataclasses.replace(SELECTED.data, task="gsm8k")),
            4,
            "task 'gsm8k' also scores how likely its gold answers are",
        ),
    ],
)
def test_bits_of_what_is_not_saved_in_them_are_refused(tmp_path, config, bits, says):
    write_json(tmp_path / "config.json", {"config": config.to_json()})
    with pytest.raises(ConfigError, match=says):
        evaluate.evaluate_run(tmp_path, bits=bits)


IN_FEW_BITS = [
    SELECTED.replace(select=dataclasses.replace(SELECTED.select, scorer="knorm")),
    ASKED,
    ASKED.replace(
        slot_form="key_values",
        encoder=dataclasses.replace(ASKED.encoder, kind="lora"),
        model=dataclasses.replace(ASKED.model, scan_layers=True),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("config", IN_FEW_BITS, ids=["entries", "soft tokens", "keys and values"])
def test_in_few_bits_a_run_answers_as_its_saved_documents_do(tmp_path, config):
    config = config.replace(data=dataclasses.replace(config.data, validation_examples=2))
    run, output = write_run(tmp_path / "run", config), tmp_path / "predictions"
    found = evaluate.evaluate_run(run, bits=4, output=output)
    whole = evaluate.evaluate_run(run)
    assert found["bits"] == 4 and "bits" not in whole
    assert found["bytes_per_context_token"] < whole["bytes_per_context_token"] / 3
    engine, stored, tokens = gistjax.load(run), 0, 0
    examples = load_dataset(config.data, config.seed).validation
    for example, row in zip(examples, json.loads(output.read_text()), strict=True):
        document = engine.compress(example.context)
        document.save(tmp_path / "document", 4)
        answer = engine.open(tmp_path / "document").ask(example.question)
        assert answer.written == row["prediction"]
        assert answer.score == pytest.approx(row["score"], rel=1e-4, abs=0)
        assert document.ask(example.question).score != pytest.approx(row["score"], rel=1e-4, abs=0)
        stored += sum(x.nbytes for x in load_tensors(tmp_path / "document")[0].values())
        tokens += document.tokens
    assert found["bytes_per_context_token"] == stored / tokens


@pytest.mark.slow
def test_refined_a_run_answers_as_its_refined_documents_do(tmp_path, monkeypatch):
    monkeypatch.setattr("gistjax.evaluation.treatment.REFINED_TOGETHER", 1)  # a device
    monkeypatch.setattr("gistjax.compress.refiner.QUESTIONS", 3)
    select = dataclasses.replace(SELECTED.select, scorer="knorm")
    data = dataclasses.replace(SELECTED.data, validation_examples=1)
    config = SELECTED.replace(select=select, data=data)
    run, output = write_run(tmp_path / "run", config), tmp_path / "predictions"
    found = evaluate.evaluate_run(run, refine=3, output=output)
    examples = load_dataset(config.data, config.seed).validation
    about = found["refined"]
    assert about["steps"] == 3 and about["seconds_per_context"] > 0
    assert about["contexts"] == len({example.context for example in examples})
    engine = gistjax.load(run)
    for example, row in zip(examples, json.loads(output.read_text()), strict=True):
        document = engine.compress(example.context, refine=3)
        answer = document.ask(example.question)
        assert answer.written == row["prediction"]
        assert answer.score == pytest.approx(row["score"], rel=1e-2, abs=0)
        plain = engine.compress(example.context).ask(example.question)
        assert plain.score != pytest.approx(answer.score, rel=1e-4, abs=0)


MIXED = dataclasses.replace(SELECTED.data, tasks={"squad": 1.0, "nq": 1.0})


@pytest.mark.parametrize(
    ("config", "steps", "says"),
    [
        (CompressionConfig(), 5, "refine is of kept entries"),
        (SELECTED, 0, "at least 1"),
        (
            SELECTED.replace(
                data=dataclasses.replace(SELECTED.data, tasks={"squad": 1.0, "nq": 1})
            ),
            5,
            "one task at a time",
        ),
        (
            SELECTED.replace(select=dataclasses.replace(SELECTED.select, scorer="question_aware")),
            5,
            "refines entries before any question",
        ),
    ],
)
def test_what_cannot_be_refined_is_refused_before_it_is_loaded(tmp_path, config, steps, says):
    write_json(tmp_path / "config.json", {"config": config.to_json()})
    with pytest.raises(ConfigError, match=says):
        evaluate.evaluate_run(tmp_path, refine=steps)
