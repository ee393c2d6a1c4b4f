"""Every default: `gistjax/config.py` says what each key means."""

from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig().to_config_dict()
