from gistjax.config import CompressionConfig


def get_config():
    return CompressionConfig(architecture="gist", target_length=64).to_config_dict()
