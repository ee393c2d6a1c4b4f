"""What a finished run says of itself."""

import pytest

from gistjax.config import CompressionConfig, DataConfig, EncoderConfig, LoraConfig
from gistjax.errors import ConfigError
from gistjax.experiment.run_dir import check_meaning, ratio_problem

ANY = CompressionConfig(ratio=4.0, ratios=(2.0, 4.0, 16.0))


@pytest.mark.parametrize(
    "ratio, config", [(2, ANY), (7.5, ANY), (16, ANY), (8, ANY.replace(ratio=8.0, ratios=()))]
)
def test_ratios_that_were_trained(ratio, config):
    assert ratio_problem(config, ratio) == ""


@pytest.mark.parametrize(
    "ratio, config, told",
    [
        (1.5, ANY, "with 2 to 16 tokens"),
        (17, ANY, "with 2 to 16 tokens"),
        (4, ANY.replace(ratio=8.0, ratios=()), "with 8 tokens"),
        (4, CompressionConfig(), "64 slots for any context"),
        (4, ANY.replace(architecture="none"), "no number of tokens a slot"),
    ],
)
def test_ratios_that_were_not(ratio, config, told):
    assert told in ratio_problem(config, ratio)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "pooling"},
        {"slot_place": "inside"},
        {"encoder": EncoderConfig(kind="lora")},
        {"lora": LoraConfig(alpha=1.0)},
    ],
)
def test_what_gives_weights_another_meaning_is_refused(changes):
    check_meaning(ANY.replace(ratio=2.0, seed=1, data=DataConfig(path="elsewhere")), ANY)
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}: this model was trained"):
        check_meaning(ANY.replace(**changes), ANY)
