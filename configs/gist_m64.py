"""Gist, 64 slots, Llama-3.1-8B: the ablation that the others are named after."""

from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig(architecture="gist", target_length=64).to_config_dict()
