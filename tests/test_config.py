import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.config import (
    ARCHITECTURES,
    DEFAULT_LOSS_WEIGHTS,
    LEARNED,
    CompressionConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
)
from gistjax.errors import ConfigError
from gistjax.runtime.cli import read_config_file
from gistjax.settings import walk
from gistjax.validation import validate

NEEDS = {"pretrain": "config.text.path", "kept": "config.teacher"}
"""What has to be given beside a config file."""
FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_config_file_is_valid(path):
    config = read_config_file(str(path))
    if path.stem in NEEDS:
        with pytest.raises(ConfigError, match=NEEDS[path.stem]):
            validate(config)
        text = dataclasses.replace(config.text, path="text")
        config = config.replace(text=text, teacher="runs/full_context")
    validate(config)


@pytest.mark.parametrize("architecture", ["cross_attention", "conv", "pooling", "gist"])
@pytest.mark.parametrize("slots", [32, 64, 128])
def test_the_seeds_twelve_ablations_are_there(architecture, slots):
    config = read_config_file(f"seed/ablation.py:{architecture},{slots}")
    assert config == CompressionConfig(architecture=architecture, target_length=slots)
    if (architecture, slots) == ("gist", 64):
        assert config == read_config_file("seed/gist_m64.py")
        assert config == read_config_file("configs/seed/ablation.py")
    for wrong in (architecture, f"{architecture},many", "gist,"):
        with pytest.raises(ConfigError, match="ARCHITECTURE,SLOTS"):
            read_config_file(f"seed/ablation.py:{wrong}")


@pytest.mark.parametrize("entries", [32, 64, 128])
def test_an_ablation_is_the_recipe_with_another_scorer(entries):
    recipe = read_config_file("gist_m64.py")
    assert recipe == read_config_file("configs/ablation.py")
    for scorer in LEARNED:
        config = read_config_file(f"ablation.py:{scorer},{entries}")
        assert (config.select.scorer, config.target_length) == (scorer, entries)
        rate = config.optimizer.scorer_lr / config.optimizer.lora_lr
        assert rate == pytest.approx(20 if scorer in ("gist", "cross_attention") else 4)
        optimizer = dataclasses.replace(config.optimizer, scorer_lr=recipe.optimizer.scorer_lr)
        assert recipe == config.replace(target_length=64, select=recipe.select, optimizer=optimizer)
    for wrong in ("gist", "gist,many", "mean_pool,64"):
        with pytest.raises(ConfigError, match="SCORER,ENTRIES"):
            read_config_file(f"ablation.py:{wrong}")


def test_a_config_of_0_1_opens_where_it_means_the_same():
    typed = CompressionConfig().to_config_dict()
    typed.slot_start = "head"
    for values in (typed, {"slot_start": "head"}):
        assert CompressionConfig.from_dict(values).slot_start == "architecture"
    old = {"seed": 3, "teacher_tokens": 16, "optimizer": {"b1": 0.9, "lora_lr": 0.1}}
    config = CompressionConfig.from_dict(old)
    assert (config.seed, config.optimizer.lora_lr) == (3, 0.1) and "b1" in old["optimizer"]
    with pytest.raises(ConfigError, match="optimizer.b1 is a key of gistjax 0.1"):
        CompressionConfig.from_dict({"optimizer": {"b1": 0.8}})


def test_every_key_has_a_line_of_help():
    for name, _, metadata in walk(CompressionConfig()):
        assert 5 < len(metadata["about"]) <= 80, name


def test_defaults_are_those_of_the_original_experiments():
    config = CompressionConfig()
    assert (config.epochs, config.batch_size, config.accumulation, config.seed) == (10, 8, 4, 42)
    used = {name: weight for name, weight in config.loss_weights.items() if weight}
    assert used == {"teacher_forcing": 0.5, "generation": 0.3, "contrastive": 0.2}
    o = config.optimizer
    assert (o.compressor_lr, o.lora_lr, o.warmup_fraction, o.clip_norm) == (1e-4, 5e-5, 0.05, 1.0)
    assert (config.data.train_examples, config.data.validation_examples) == (10_000, 1_000)


@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.integers(1, 512),
    st.floats(0, 100),
    st.lists(st.integers(1, 4096), min_size=1, max_size=5, unique=True).map(sorted).map(tuple),
    st.integers(0, 128),
    st.booleans(),
)
def test_json_round_trip(architecture, slots, epochs, buckets, rank, remat):
    config = CompressionConfig(
        architecture=architecture,
        target_length=slots,
        epochs=epochs,
        data=DataConfig(context_buckets=buckets),
        lora=LoraConfig(rank=rank),
        model=ModelConfig(remat=remat),
    )
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


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompressionConfig().seed = 3


def test_every_loss_can_be_switched_on_where_a_config_file_names_a_few():
    config = CompressionConfig(loss_weights={"teacher_forcing": 1.0}).to_config_dict()
    assert set(config.loss_weights) == set(DEFAULT_LOSS_WEIGHTS)
    assert sum(config.loss_weights.values()) == 1.0


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({}, "llama-3.1-8b-instruct"),
        ({"path": "random"}, "llama-3.1-8b-instruct"),
        ({"path": "/models/mine/"}, "mine"),
        ({"path": "models/../mine.gguf"}, "mine.gguf"),
        ({"path": "/hub/models--me--llama/snapshots/0a1b"}, "me/llama"),
        ({"path": "/models/mine", "name": "me/llama"}, "me/llama"),
        ({"name": "me/llama"}, "me/llama"),
    ],
)
def test_a_base_is_known_by_its_name_or_by_its_path_alone(model, name):
    assert ModelConfig(**model).known_as == name
