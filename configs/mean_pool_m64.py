"""The control without parameters in its head: window means."""

from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig(architecture="mean_pool", target_length=64).to_config_dict()
