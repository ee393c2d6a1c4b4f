"""What is written down about a run: every field by hand, from answers that are given."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from gistjax.config import CompressionConfig, DataConfig, EvaluationConfig, LoraConfig, ModelConfig
from gistjax.data.example import Example, TokenizedExample
from gistjax.evaluation.generate import Answers
from gistjax.evaluation.statistics import clustered_bootstrap, paired_difference
from gistjax.experiment import evaluator
from gistjax.experiment.confidence import Calibration, Confidence
from gistjax.experiment.run_dir import RunDir
from gistjax.weights.registry import resolve
from gistjax.weights.tokenizers import byte_tokenizer

MILL = "Ada Byron, as they say, built the mill in 1783."
TEA = "In the old and quiet town of Esker, green tea is drunk by nearly everybody who has time."
SHED = "A shed."
EXAMPLES = [
    Example("a", "Mill", MILL, "Who built it?", ("Ada Byron", "Ada"), 0, evidence=("Ada Byron",)),
    Example("b", "Mill", MILL, "When?", ("1783",), 0, evidence=("1783",)),
    Example("c", "Tea", TEA, "What is drunk?", ("tea", "green tea"), 1, evidence=("green tea",)),
    Example("d", "Shed", SHED, "Who owns it?", (), 2),
    Example("e", "Shed", SHED, "How many?", ("two",), 2),
]
ROWS = [0, 0, 1, 2, 2]
"""The context of each question."""
LENGTHS = [len(text) for text in (MILL, TEA, SHED)]
"""In tokens, which are bytes here."""
GIVEN = {
    "answering": ["Ada Lovelace", "1783.", "black coffee", "", "a shed"],
    "untuned full context": ["Mrs Byron", "1783", "tea", "Ada", "Ada"],
    "wrong contexts": ["x", "x", "old tea", "x", "x"],
}
SUMS = dict.fromkeys(GIVEN, [-2.0, -1.0, -1.0, -3.0, -0.5])
"""Log-probabilities of the answers."""
F1_N, EM_N = [2 / 3, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.0]
ANSWERABLE_F1_N = [2 / 3, 1.0, 0.0, 0.0]
BASE_F1_N, BASE_EM_N = [0.5, 1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0, 0.0]
WRONG_F1_N = [0.0, 0.0, 2 / 3, 0.0, 0.0]
SAMPLES, SEED, D = 40, 5, 64
CONFIG = CompressionConfig(
    architecture="pooling",
    target_length=8,
    seed=SEED,
    model=ModelConfig(name="tiny-random", dtype="float32"),
    lora=LoraConfig(rank=2),
    data=DataConfig(
        context_tokens=128, context_buckets=(128,), question_buckets=(192,), context="paragraph"
    ),
    evaluation=EvaluationConfig(bootstrap_samples=SAMPLES, shuffled=True),
)


class Given:
    """A generator that gives the answers above, and keeps the rows that it was asked."""

    def __init__(self, tokenizer):
        self.asked, self.built, self._tokenizer = {}, [], tokenizer

    def __call__(self, trainable, frozen, rows, title):
        self.asked[title] = list(rows)
        ids = [self._tokenizer.encode(f" {text}") for text in GIVEN[title]]
        slots, sums = np.array([8, 8, 8, 2, 2]), np.array(SUMS[title])
        return Answers(ids, slots, sums, compress_s=0.5, answer_s=2.0, stored_bytes=SAMPLES)

    def slots(self, trainable, frozen, rows):
        return np.eye(3)[:, None].repeat(2, axis=1), np.array([2, 2, 2])


@pytest.fixture
def given(monkeypatch):
    """Make an evaluator of a configuration that is given its answers."""
    tokenizer = byte_tokenizer()
    pretrained = SimpleNamespace(tokenizer=tokenizer, mesh=None, source=resolve(CONFIG.model))
    generator = Given(tokenizer)
    monkeypatch.setattr(evaluator, "make_generator", lambda *_: generator)
    monkeypatch.setattr(evaluator, "build_model", lambda config, _: generator.built.append(config))
    monkeypatch.setattr(evaluator, "split_model", lambda _: (None, None, None))
    monkeypatch.setattr(evaluator, "slot_attention", lambda *_: [{"context_id": 0}])
    contexts = [np.array(tokenizer.encode(text), np.int32) for text in (MILL, TEA, SHED)]
    ids = np.ones(3, np.int32)
    rows = [TokenizedExample(contexts[c], ids, ids, c, i) for i, c in enumerate(ROWS)]

    def make(config=CONFIG, confidence=None):
        made = evaluator.Evaluator(config, pretrained, rows, EXAMPLES, None, confidence)
        return made, generator

    return make


def interval(values_N):
    return list(clustered_bootstrap(values_N, ROWS, SAMPLES, SEED))


def test_every_metric_by_hand(given):
    measured, generator = given()
    found = measured.measure(None, None).metrics
    assert [(c.architecture, c.data.select) for c in generator.built] == [("none", "all")]
    gap = np.subtract(F1_N, WRONG_F1_N)
    sizes = len(MILL), len(TEA), len(SHED)
    expected = {
        "architecture": "pooling",
        "target_length": 8,
        "final_f1": pytest.approx(np.mean(F1_N)),
        "final_f1_interval": pytest.approx(interval(F1_N)),
        "final_em": pytest.approx(0.4),
        "final_em_interval": pytest.approx(interval(EM_N)),
        "baseline_f1": pytest.approx(np.mean(BASE_F1_N)),
        "baseline_f1_interval": pytest.approx(interval(BASE_F1_N)),
        "baseline_em": pytest.approx(np.mean(BASE_EM_N)),
        # by score: "a shed", then "1783." and "black coffee" alike, "Ada Lovelace", ""
        "accuracy_area": pytest.approx((0 + 1 / 4 + 1 / 3 + 1 / 4 + 2 / 5) / 5),
        "auroc": pytest.approx((1.5 + 0) / 6),
        "auroc_answerable": 1.0,
        "baseline_accuracy_area": pytest.approx((0 + 1 / 2 + 2 / 3 + 2 / 4 + 2 / 5) / 5),
        "calibrated": False,
        "answerable_f1": pytest.approx(np.mean(ANSWERABLE_F1_N)),
        "answerable_f1_interval": pytest.approx(
            list(clustered_bootstrap(ANSWERABLE_F1_N, [0, 0, 1, 2], SAMPLES, SEED))
        ),
        "answerable_em": 0.25,
        "unanswerable_f1": 1.0,
        "compression_ratio": 16.0,
        "effective_compression_ratio": (2 * sizes[0] + sizes[1] + 2 * sizes[2]) / 28,
        "bytes_per_context_token": SAMPLES / (2 * sizes[0] + sizes[1] + 2 * sizes[2]),
        "compressor_parameters": D * D + D,
        "trainable_parameters": D * D + D + 2 * 2 * 1024,  # LoRA: layers, rank, in + out of all
        "wall_time_per_sample_s": {"compress": 0.1, "answer": 0.4},
        "slot_similarity": {"within": 1.0, "between": 0.0},
        "shuffled_f1": pytest.approx(np.mean(WRONG_F1_N)),
        "shuffled_gap": pytest.approx(gap.mean()),
        "shuffled_gap_interval": pytest.approx(
            paired_difference(F1_N, WRONG_F1_N, ROWS, SAMPLES, SEED).interval
        ),
        "answer_diversity": {"predictions": 1.0, "golds": 1.0, "empty": 0.2},
        "n_examples": 5,
        "seed": SEED,
        "base_model": "tiny-random",
    }
    assert {key: found[key] for key in expected} == expected
    by_type = {kind: (part["n"], part["f1"]) for kind, part in found["by_type"].items()}
    assert by_type == {
        "date": (1, 1.0),
        "name": (1, pytest.approx(2 / 3)),
        "no answer": (1, 1.0),
        "number": (1, 0.0),
        "other": (1, 0.0),
    }
    by_place = {place: (part["n"], part["f1"]) for place, part in found["by_place"].items()}
    assert by_place == {
        "absent": (2, 0.5),
        "first": (1, pytest.approx(2 / 3)),
        "last": (1, 1.0),
        "middle": (1, 0.0),
    }
    low, high = found["accuracy_area_interval"]
    assert 0 <= low <= found["accuracy_area"] <= high <= 1
    assert found.keys() - expected.keys() == {
        "by_type", "by_place", "device", "packages", "accuracy_area_interval",
    }  # fmt: skip


def test_every_prediction_by_hand(given):
    predictions = given()[0].measure(None, None).predictions
    assert predictions == [
        {
            "id": example.id,
            "context_id": context,
            "context_tokens": LENGTHS[context],
            "question": example.question,
            "prediction": text,
            "score": pytest.approx(np.exp(total)),
            "answers": list(example.answers),
            "type": kind,
            "place": place,
            "f1": f1,
            "em": em,
        }
        for example, context, text, total, kind, place, f1, em in zip(
            EXAMPLES,
            ROWS,
            GIVEN["answering"],
            SUMS["answering"],
            ["name", "date", "other", "no answer", "number"],
            ["first", "last", "middle", "absent", "absent"],
            F1_N,
            EM_N,
            strict=True,
        )
    ]


def test_below_the_threshold_nothing_is_answered(given):
    """Chances of 0.12, 0.27, 0.27, 0.05 and 0.38: at 0.2 two are withheld, one of them empty."""
    whole = given()[0].measure(None, None).metrics
    confidence = Confidence(Calibration(slope=1.0, intercept=0.0), threshold=0.2)
    found = given(confidence=confidence)[0].measure(None, None)
    chances = 1 / (1 + np.exp(-np.array(SUMS["answering"])))
    assert [row["score"] for row in found.predictions] == pytest.approx(chances.tolist())
    assert [row["prediction"] for row in found.predictions] == [
        "", "1783.", "black coffee", "", "a shed",
    ]  # fmt: skip
    assert [row.get("withheld") for row in found.predictions] == ["Ada Lovelace", *[None] * 4]
    metrics = found.metrics
    assert (metrics["threshold"], metrics["coverage"], metrics["calibrated"]) == (0.2, 0.6, True)
    assert metrics["final_f1"] == pytest.approx(2 / 5) and metrics["answerable_f1"] == 0.25
    for key in ("accuracy_area", "auroc", "auroc_answerable"):
        assert metrics[key] == pytest.approx(whole[key]), "of what was written, whatever the scale"
    gaps = abs(chances - EM_N)
    assert metrics["calibration_error"] == pytest.approx(gaps.mean())


def test_wrong_slots_are_those_of_another_article(given):
    measured, generator = given()
    measured.measure(None, None)
    asked, wrong = generator.asked["answering"], generator.asked["wrong contexts"]
    for row, other, example in zip(asked, wrong, EXAMPLES, strict=True):
        assert (other.question_ids is row.question_ids) and other.context_id != row.context_id
        assert EXAMPLES[ROWS.index(other.context_id)].title != example.title
        assert other.context_ids is asked[ROWS.index(other.context_id)].context_ids


def test_what_is_switched_off_is_left_out(given):
    off = EvaluationConfig(bootstrap_samples=SAMPLES, shuffled=False, baseline=False)
    measured, generator = given(CONFIG.replace(evaluation=off))
    found = measured.measure(None, None)
    assert list(generator.asked) == ["answering"] and found.slot_attention
    assert found.metrics["baseline_f1"] is found.metrics["baseline_em"] is None
    assert "slot_similarity" in found.metrics and "shuffled_f1" not in found.metrics


def test_of_selected_tokens_the_ratio_counts_the_whole_text_and_the_baseline_reads_it(given):
    data = dataclasses.replace(CONFIG.data, select="first")
    measured, generator = given(CONFIG.replace(architecture="none", data=data))
    found = measured.measure(None, None)
    lengths = {
        title: [len(row.context_ids) for row in rows] for title, rows in generator.asked.items()
    }
    whole = [len(example.context) for example in EXAMPLES]
    assert lengths["untuned full context"] == whole
    assert lengths["answering"] == [8, 8, 8, 7, 7]
    assert found.metrics["effective_compression_ratio"] == sum(whole) / 28
    base = resolve(CONFIG.model).config
    position = 2 * base.n_layers * base.n_kv_heads * base.head_dim * 4
    assert found.metrics["bytes_per_context_token"] == pytest.approx(28 * position / sum(whole))
    assert found.metrics["target_length"] is None and not found.slot_attention
    assert not found.metrics.keys() & {"shuffled_f1", "slot_similarity"}
    assert [row["place"] for row in found.predictions] == [
        "first", "last", "middle", "absent", "absent",
    ]  # fmt: skip


def test_the_headline_is_the_mean(given, monkeypatch):
    monkeypatch.setitem(GIVEN, "validating", GIVEN["answering"])
    monkeypatch.setitem(SUMS, "validating", SUMS["answering"])
    assert given()[0].headline(None, None) == {"f1": round(np.mean(F1_N), 4), "em": 0.4}


def test_answers_are_made_with_the_settings_of_the_evaluation(monkeypatch):
    monkeypatch.setattr(evaluator, "Generator", lambda *args, **settings: settings)
    monkeypatch.setattr(evaluator, "rows_per_step", lambda mesh: 4)
    own = EvaluationConfig(batch_size=3, max_answer_tokens=11)
    config = CONFIG.replace(batch_size=2, evaluation=own)
    pretrained = SimpleNamespace(mesh=None, prompt=SimpleNamespace(end_id=7, end_ids=(7, 8)))
    found = evaluator.make_generator(config, pretrained, None)
    assert (found["batch_size"], found["max_tokens"]) == (12, 11)
    assert found["buckets"].context == (128,) and found["buckets"].question == (192,)


def test_metrics_which_mark_a_run_as_finished_are_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(evaluator, "write_json", lambda path, *_, **__: written.append(path.name))
    result = evaluator.EvalResult({"final_f1": 0.5}, [{"f1": 0.5}], [{"slot": 0}])
    result.write(RunDir(tmp_path), 3, 1)
    assert written[-1] == "metrics.json" and len(written) == 4


def test_each_file_holds_its_own(tmp_path):
    result = evaluator.EvalResult(
        {"final_f1": 0.5}, [{"f1": 1}, {"f1": 0}, {"f1": 0.5}], [{"a": 0}], {"n": 1}
    )
    assert result.write(RunDir(tmp_path), 3, 2) == {"final_f1": 0.5, "steps": 3}
    assert {file.name: json.loads(file.read_text()) for file in tmp_path.iterdir()} == {
        "metrics.json": {"final_f1": 0.5, "steps": 3},
        "predictions.json": result.predictions,
        "sample_predictions.json": result.predictions[:2],
        "slot_attention.json": [{"a": 0}],
        "kept_entries.json": {"n": 1},
    }
