from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig(architecture="conv", target_length=64).to_config_dict()
