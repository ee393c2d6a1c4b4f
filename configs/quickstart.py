"""Minutes on a laptop CPU: SmolLM2-135M, 16 slots, a few steps on the questions that come with the package."""

from gistjax.config import CompressionConfig, DataConfig, EvaluationConfig, LoraConfig, ModelConfig


def get_config():
    return CompressionConfig(
        architecture="gist",
        target_length=16,
        max_steps=20,
        batch_size=4,
        accumulation=1,
        log_every=1,
        model=ModelConfig(name="smollm2-135m-instruct", dtype="float32", scan_layers=True),
        lora=LoraConfig(rank=8, alpha=16.0),
        data=DataConfig(
            path="sample", context="paragraph", context_tokens=256,
            context_buckets=(128, 256), question_buckets=(64, 96),
        ),
        evaluation=EvaluationConfig(batch_size=8, max_answer_tokens=16),
    ).to_config_dict()  # fmt: skip
