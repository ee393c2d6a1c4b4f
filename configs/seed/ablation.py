"""The seed's own ablations: an architecture and its slots; every other key has its default.

python -m gistjax.train --config configs/seed/ablation.py:pooling,32
"""

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError


def get_config(which="gist,64"):
    architecture, _, slots = which.partition(",")
    if not slots.isdecimal():
        raise ConfigError(
            f"{which!r} is not ARCHITECTURE,SLOTS, as in configs/seed/ablation.py:gist,64."
        )
    return CompressionConfig(architecture=architecture, target_length=int(slots)).to_config_dict()
