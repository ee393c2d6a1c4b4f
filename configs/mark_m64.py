"""The control whose head reads nothing: one trained vector in every slot."""

from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig(architecture="mark", target_length=64).to_config_dict()
