"""The lower control: no context at all, LoRA-tuned like the others."""

from gistjax.config import CompressionConfig


def get_config():
    weights = {"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0}
    return CompressionConfig(architecture="closed_book", loss_weights=weights).to_config_dict()
