"""What a training may start from."""

import json

import numpy as np
import pytest

from gistjax.config import CompressionConfig, EncoderConfig, LoraConfig, SelectConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment.run_dir import provenance
from gistjax.experiment.start import check_start, note_base
from gistjax.runtime.tensors import save_tensors

LORA = LoraConfig(rank=4, alpha=8.0, targets=("q", "v"))
TUNED = EncoderConfig(kind="lora", lora=LORA)
EARLIER = CompressionConfig(architecture="pooling", lora=LORA, encoder=TUNED)


def start(folder, earlier, now, metadata=None):
    file = folder / "compressor.safetensors"
    metadata = provenance(earlier) if metadata is None else metadata
    save_tensors(file, {"a": np.arange(3.0)}, metadata)
    return check_start(now.replace(init_from=str(folder)))


def lora(**changes):
    return LoraConfig(**{"rank": 4, "alpha": 8.0, "targets": ("q", "v"), **changes})


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"lora": lora(alpha=4.0)}, "lora.alpha=8"),
        ({"lora": lora(rank=8, alpha=16.0)}, "lora.rank=4, lora.alpha=8"),
        ({"lora": lora(rank=0)}, "lora.rank=4"),
        ({"lora": lora(targets=("q", "k"))}, "lora.targets with v"),
        ({"encoder": EncoderConfig(kind="lora", lora=lora(alpha=9.0))}, "encoder.lora.alpha=8"),
        ({"encoder": EncoderConfig(kind="lora", lora=lora(targets=("v",)))}, "targets with q"),
        ({"encoder": EncoderConfig(kind="hidden")}, "encoder.kind='lora'"),
        ({"encoder": EncoderConfig(kind="lora", layers=2, lora=LORA)}, "encoder.layers=-1"),
        (
            {"encoder": EncoderConfig(kind="lora", bidirectional=True, lora=LORA)},
            "encoder.bidirectional=False",
        ),
        ({"slot_form": "key_values"}, "slot_form='soft_tokens'"),
        ({"slot_place": "inside"}, "slot_place='behind'"),
        ({"slot_start": "window_means"}, "slot_start='architecture'"),
        ({"slot_positions": "spread"}, "slot_positions='packed'"),
        ({"connector": "none"}, "connector='rms'"),
    ],
)
def test_a_start_that_would_mean_something_else_is_refused(changes, told, tmp_path):
    with pytest.raises(ConfigError, match=f"init_from: .*trained with .*{told}"):
        start(tmp_path, EARLIER, EARLIER.replace(**changes))


@pytest.mark.parametrize("scorer", ["pooling", "kvzip"])
def test_another_scorer_than_the_trained_one_is_refused(scorer, tmp_path):
    kept = EARLIER.replace(architecture="select", select=SelectConfig("conv"))
    start(tmp_path, kept, kept)
    with pytest.raises(ConfigError, match="trained with select.scorer='conv'"):
        start(tmp_path, kept, kept.replace(select=SelectConfig(scorer)))


@pytest.mark.parametrize(
    "earlier, now",
    [
        ({}, {"ratio": 8.0, "target_length": 16, "seed": 1, "epochs": 2.0}),
        ({}, {"lora": lora(targets=("q", "k", "v"))}),
        ({"lora": lora(rank=0)}, {}),
        ({"encoder": EncoderConfig(kind="hidden")}, {}),
        ({}, {"architecture": "conv", "slot_start": "window_ends", "connector": "linear"}),
        ({"architecture": "none", "encoder": EncoderConfig()}, {}),
        ({}, {"architecture": "none", "encoder": EncoderConfig()}),
        ({"architecture": "none"}, {"architecture": "closed_book"}),
    ],
)
def test_a_start_that_means_the_same_is_taken(earlier, now, tmp_path):
    start(tmp_path, EARLIER.replace(**earlier), EARLIER.replace(**now))


def test_the_hash_is_that_of_the_weights(tmp_path):
    one = start(tmp_path, EARLIER, EARLIER)
    assert one == start(tmp_path, EARLIER, EARLIER, {**provenance(EARLIER), "more": "text"})
    file = tmp_path / "compressor.safetensors"
    for other in ({"a": np.arange(1.0, 4.0)}, {"b": np.arange(3.0)}, {"a": np.arange(3)}):
        save_tensors(file, other, provenance(EARLIER))
        assert check_start(EARLIER.replace(init_from=str(tmp_path))) != one


def test_another_base_is_told(tmp_path, caplog):
    start(tmp_path, EARLIER, EARLIER)
    config = EARLIER.replace(init_from=str(tmp_path))
    note_base(EARLIER, "b" * 64)
    note_base(config, "b" * 64)  # the file alone does not say
    about = {"config": EARLIER.to_json(), "base_sha256": "a" * 64}
    (tmp_path / "config.json").write_text(json.dumps(about))
    note_base(config, "a" * 64)
    assert not caplog.messages
    note_base(config, "b" * 64)
    note_base(config.replace(init_from=str(tmp_path / "compressor.safetensors")), "b" * 64)
    assert caplog.text.count("another base, or on this one in another dtype") == 2


def test_weights_that_do_not_say_how_they_were_trained(tmp_path, caplog):
    start(tmp_path, EARLIER, EARLIER, {})
    assert "does not say how it was trained" in caplog.text
    with pytest.raises(CheckpointError, match="configuration cannot be read"):
        start(tmp_path, EARLIER, EARLIER, {"config": "{"})
