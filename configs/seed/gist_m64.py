"""The seed's own: gist, 64 slots, Llama-3.1-8B, trained on questions alone."""

from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig(architecture="gist", target_length=64).to_config_dict()
