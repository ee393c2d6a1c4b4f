"""The upper control: the whole paragraph, read by the LoRA-tuned decoder."""

from gistjax.config import CompressionConfig, DataConfig, LoraConfig, OptimizerConfig


def get_config():
    return CompressionConfig(
        architecture="none",
        loss_weights={"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0},
        epochs=2.0,
        accumulation=1,
        batch_size=32,
        lora=LoraConfig(rank=64, alpha=128.0),
        data=DataConfig(context="paragraph"),
        optimizer=OptimizerConfig(lora_lr=2e-4),
    ).to_config_dict()
