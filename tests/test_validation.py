import pytest

from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    SelectConfig,
    TextConfig,
)
from gistjax.errors import ConfigError
from gistjax.validation import check_trains, note_budget, validate

KEPT = {"architecture": "select", "loss_weights": {"teacher_forcing": 1.0}}
WRONG = [
    ({"architecture": "gst"}, "did you mean 'gist'"),
    ({"architecture": "transformer-xl"}, "known are"),
    ({"slot_form": "kv"}, "slot_form"),
    ({"connector": "rns"}, "did you mean 'rms'"),
    ({"target_length": 0}, "target_length=0 must be at least 1"),
    ({"target_length": 513}, "more than data.context_tokens=512"),
    (
        {
            "slot_form": "key_values",
            "architecture": "none",
            "loss_weights": {"teacher_forcing": 1.0},
        },
        "needs slots, which architecture='none'",
    ),
    (
        {"slot_form": "key_values", "encoder": EncoderConfig(kind="lora", bidirectional=True)},
        "causal",
    ),
    ({"ratio": 0.5}, "ratio=0.5"),
    ({"ratios": (0.5, 4.0)}, "ratios="),
    ({"ratios": (4.0, 2.0)}, "ascend"),
    ({"ratios_per_question": 2}, "is for architecture='select'"),
    (
        {
            "architecture": "select",
            "ratios": (4.0,),
            "ratios_per_question": 2,
            "loss_weights": {"teacher_forcing": 1.0},
        },
        "more than there are in ratios",
    ),
    (
        {"architecture": "select", "loss_weights": {"teacher_forcing": 1.0, "kvzip": 1.0}},
        "teaches a scorer, which is to be learned",
    ),
    ({"loss_weights": {"kvzip": 1.0}}, "select.scorer to one of"),
    ({"select": SelectConfig(bits=(16, 4))}, "is for architecture='select', not 'gist'"),
    ({"architecture": "select", "select": SelectConfig(bits=(16, 5))}, "select.bits cannot be 5"),
    ({"architecture": "select", "select": SelectConfig(bits=(4, 4))}, "names one of them twice"),
    (
        {**KEPT, "select": SelectConfig(joined=9)},
        "select.joined=9 contexts are more than the batch_size=8",
    ),
    (
        {**KEPT, "select": SelectConfig(joined=2, bits=(16, 4))},
        "select.joined and select.bits: entries are rounded in each text alone",
    ),
    ({"slot_place": "inside"}, "slot_form="),
    ({"slot_start": "mean"}, "window_means"),
    ({"loss_weights": {"cloze": 1.0}}, "config.text.path"),
    ({"data": DataConfig(holdout=1.0)}, "holdout"),
    (
        {"loss_weights": {"cloze": 1.0}, "text": TextConfig(path="text", min_tokens=600)},
        "text.min_tokens=600 is more than data.context_tokens=512",
    ),
    ({"epochs": -1.0}, "epochs"),
    ({"epochs": float("inf")}, "epochs=inf must be finite"),
    ({"optimizer": OptimizerConfig(compressor_lr=float("inf"))}, "compressor_lr=inf must be fin"),
    ({"batch_size": 0}, "batch_size"),
    ({"accumulation": 0}, "accumulation"),
    ({"seed": -1}, "seed"),
    ({"log_every": 0}, "log_every"),
    ({"data": DataConfig(task="ask")}, "data.task cannot be 'ask'"),
    ({"deterministic": True, "model": ModelConfig(attention="cudnn")}, "leave it at 'auto'"),
    ({"loss_weights": {"teacher_forcng": 1.0}}, "did you mean 'teacher_forcing'"),
    ({"loss_weights": {"teacher_forcing": -1.0}}, "0 .off. or above"),
    ({"loss_weights": {"teacher_forcing": float("nan")}}, "0 .off. or above"),
    ({"loss_weights": {"teacher_forcing": 0.0}}, "nothing to train on"),
    ({"loss_weights": {}}, "nothing to train on"),
    ({"architecture": "none"}, "contrastive=0"),
    ({"architecture": "closed_book"}, "contrastive=0"),
    ({"encoder": EncoderConfig(kind="bert")}, "encoder.kind"),
    ({"encoder": EncoderConfig(bidirectional=True)}, "encoder.kind='lora'"),
    (
        {
            "architecture": "select",
            "encoder": EncoderConfig(bidirectional=True),
            "lora": LoraConfig(rank=0),
            "loss_weights": {"teacher_forcing": 1.0},
        },
        r"needs an adapter \(lora.rank\)",
    ),
    ({"encoder": EncoderConfig(kind="lora", lora=LoraConfig(rank=0))}, "encoder.lora.rank"),
    ({"encoder": EncoderConfig(kind="lora", layers=0)}, "layers to adapt"),
    ({"lora": LoraConfig(targets=("q", "qq"))}, "lora.targets cannot be 'qq'"),
    ({"lora": LoraConfig(rank=-1)}, "lora.rank"),
    ({"model": ModelConfig(dtype="bf16")}, "did you mean 'bfloat16'"),
    ({"data": DataConfig(context="paragraf")}, "did you mean 'paragraph'"),
    ({"data": DataConfig(context_buckets=(512, 128))}, "ascending"),
    ({"data": DataConfig(context_buckets=(128,))}, "must hold"),
    ({"data": DataConfig(question_buckets=())}, "ascending"),
    ({"optimizer": OptimizerConfig(lora_lr=-1.0)}, "lora_lr"),
    ({"optimizer": OptimizerConfig(clip_norm=0.0)}, "clip_norm"),
    ({"optimizer": OptimizerConfig(warmup_fraction=1.0)}, "below 1"),
    ({"mesh": MeshConfig(data=-1, fsdp=-1)}, "only one axis"),
    ({"evaluation": EvaluationConfig(batch_size=0)}, "evaluation.batch_size"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_run_is_refused_with_cause_and_fix(change, says):
    with pytest.raises(ConfigError, match=says):
        validate(CompressionConfig().replace(**change))


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ({}, "nothing to train on"),
        ({"distillation": 1.0}, "answers to questions"),
        ({"cloze": 1.0}, None),
    ],
)
def test_without_questions_there_must_be_text(losses, says):
    config = CompressionConfig(
        loss_weights={"teacher_forcing": 1.0, **losses}, data=DataConfig(train_examples=0)
    )
    if says is None:
        return check_trains(config)
    with pytest.raises(ConfigError, match=says):
        check_trains(config)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"select": {"warmup": 0.0}}, "select.warmup: .* select.scorer='kvzip' trains none"),
        ({"select": {"temperature": 2.0}}, "select.temperature: "),
        ({"optimizer": OptimizerConfig(scorer_lr=1e-3)}, "optimizer.scorer_lr: "),
        (
            {"architecture": "gist", "optimizer": OptimizerConfig(scorer_lr=1e-3)},
            "optimizer.scorer_lr: .* architecture='gist' trains none",
        ),
    ],
)
def test_settings_of_a_scorers_training_are_refused_where_none_is_trained(changes, names):
    config = CompressionConfig(architecture="select", loss_weights={"teacher_forcing": 1.0})
    select = changes.pop("select", {})
    config = config.replace(select=SelectConfig(**select), **changes)
    with pytest.raises(ConfigError, match=names):
        check_trains(config)
    validate(config)  # a run that is only evaluated
    check_trains(config.replace(architecture="select", select=SelectConfig("conv", **select)))


def test_distillation_needs_a_teacher():
    weights = {"teacher_forcing": 1.0, "distillation": 1.0}
    with pytest.raises(ConfigError, match="--config.teacher"):
        validate(CompressionConfig(loss_weights=weights))
    validate(CompressionConfig(loss_weights=weights, teacher="runs/full_context"))


@pytest.mark.parametrize(
    ("changes", "is_noted"),
    [
        ({}, True),
        ({"ratio": 8.0}, False),
        ({"ratios": (2.0, 8.0)}, False),
        ({"select": SelectConfig(bytes=5000)}, False),
        ({"architecture": "gist"}, False),
        ({"architecture": "none"}, False),
    ],
)
def test_what_is_kept_without_a_ratio_is_said(changes, is_noted, caplog):
    caplog.set_level("INFO")
    note_budget(CompressionConfig(**{"architecture": "select", "target_length": 32, **changes}))
    assert ("so 32 entries a KV head are kept" in caplog.text) == is_noted
