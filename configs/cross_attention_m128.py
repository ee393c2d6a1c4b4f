from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig(architecture="cross_attention", target_length=128).to_config_dict()
