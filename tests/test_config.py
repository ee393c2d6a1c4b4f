import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.config import (
    ARCHITECTURES,
    DEFAULT_LOSS_WEIGHTS,
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    validate,
)
from gistjax.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return CompressionConfig.from_dict(module.get_config())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid(path):
    config = load(path)
    if path.stem == "pretrain":
        with pytest.raises(ConfigError, match="config.text.path"):
            validate(config)
        config = config.replace(text=dataclasses.replace(config.text, path="text"))
    validate(config)
    name, _, slots = path.stem.rpartition("_m")
    if name:
        assert (config.architecture, config.target_length) == (name, int(slots))


def test_the_twelve_ablations_are_there():
    names = {path.stem for path in CONFIGS}
    for architecture in ("cross_attention", "conv", "pooling", "gist"):
        for slots in (32, 64, 128):
            assert f"{architecture}_m{slots}" in names


def test_defaults_are_those_of_the_original_experiments():
    config = CompressionConfig()
    assert (config.epochs, config.batch_size, config.accumulation, config.seed) == (10, 8, 4, 42)
    used = {name: weight for name, weight in config.loss_weights.items() if weight}
    assert used == {"teacher_forcing": 0.5, "generation": 0.3, "contrastive": 0.2}
    o = config.optimizer
    assert (o.compressor_lr, o.lora_lr, o.warmup_fraction, o.clip_norm) == (1e-4, 5e-5, 0.05, 1.0)
    assert (config.data.train_examples, config.data.validation_examples) == (10_000, 1_000)


@given(
    st.sampled_from(ARCHITECTURES), st.integers(1, 512), st.floats(0, 100),
    st.lists(st.integers(1, 4096), min_size=1, max_size=5, unique=True).map(sorted).map(tuple),
    st.integers(0, 128), st.booleans(),
)  # fmt: skip
def test_json_round_trip(architecture, slots, epochs, buckets, rank, remat):
    config = CompressionConfig(
        architecture=architecture, target_length=slots, epochs=epochs,
        data=DataConfig(context_buckets=buckets), lora=LoraConfig(rank=rank),
        model=ModelConfig(remat=remat),
    )  # fmt: skip
    assert CompressionConfig.from_dict(json.loads(json.dumps(config.to_json()))) == config
    assert CompressionConfig.from_dict(config.to_config_dict()) == config


def test_numbers_take_the_type_of_their_default():
    config = CompressionConfig.from_dict({"epochs": 2, "data": {"context_buckets": [128, 512]}})
    assert isinstance(config.epochs, float)
    assert config.data.context_buckets == (128, 512)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"target_lenght": 3}, "did you mean 'target_length'"),
        ({"data": {"pth": "x"}}, r"'data.pth'; did you mean 'path'"),
        ({"seed": "1"}, "'seed' takes a int"),
        ({"seed": True}, "'seed' takes a int"),
        ({"seed": 1.5}, "'seed' takes a int"),
        ({"model": 3}, "'model' takes"),
        ({"data": {"context_buckets": 512}}, "takes a tuple of int"),
        ({"data": {"context_buckets": ["a"]}}, "takes a int"),
        ({"loss_weights": {"teacher_forcing": "x"}}, r"loss_weights\.teacher_forcing"),
    ],
)
def test_wrong_keys_and_types_are_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        CompressionConfig.from_dict(values)


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
    ({"slot_place": "inside"}, "slot_form="),
    ({"slot_start": "mean"}, "window_means"),
    ({"loss_weights": {"cloze": 1.0}}, "config.text.path"),
    ({"data": DataConfig(holdout=1.0)}, "holdout"),
    (
        {"loss_weights": {"cloze": 1.0}, "text": TextConfig(path="text", min_tokens=600)},
        "text.min_tokens=600 is more than data.context_tokens=512",
    ),
    ({"epochs": -1.0}, "epochs"),
    ({"epochs": float("inf")}, "epochs"),
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
    ({"encoder": EncoderConfig(kind="lora", lora=LoraConfig(rank=0))}, "encoder.lora.rank"),
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


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompressionConfig().seed = 3


def test_every_loss_can_be_switched_on_where_a_config_file_names_a_few():
    config = CompressionConfig(loss_weights={"teacher_forcing": 1.0}).to_config_dict()
    assert set(config.loss_weights) == set(DEFAULT_LOSS_WEIGHTS)
    assert sum(config.loss_weights.values()) == 1.0


def test_distillation_needs_a_teacher():
    weights = {"teacher_forcing": 1.0, "distillation": 1.0}
    with pytest.raises(ConfigError, match="--config.teacher"):
        validate(CompressionConfig(loss_weights=weights))
    validate(CompressionConfig(loss_weights=weights, teacher="runs/full_context"))
