"""What a finished run says of itself."""

import pytest

from gistjax.config import CompressionConfig, DataConfig, EncoderConfig, LoraConfig
from gistjax.errors import ConfigError
from gistjax.experiment.run_dir import check_meaning

ANY = CompressionConfig(ratio=4.0, ratios=(2.0, 4.0, 16.0))


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
