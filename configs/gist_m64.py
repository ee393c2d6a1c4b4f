"""A compressor from nothing: 64 entries a KV head on average, which gist tokens choose.

    python -m gistjax.train --config configs/gist_m64.py [--config.model.name=smollm2-135m-instruct]

One stage from the untuned base, without a teacher. It answers at any ratio from 1 to 32, and so
with 32 to 128 entries (`--config.target_length` of `gistjax.evaluate`). `kept.py` is the recipe of
two stages. Its rates were found with SmolLM2-135M.
"""

from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    LoraConfig,
    OptimizerConfig,
    SelectConfig,
)


def get_config():
    losses = {"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0}
    return CompressionConfig(
        architecture="select",
        target_length=64,
        ratios=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        ratios_per_question=2,
        select=SelectConfig(scorer="gist"),
        epochs=2.0,
        batch_size=4,
        accumulation=8,
        loss_weights={**losses, "kvzip": 1.0},
        lora=LoraConfig(rank=64, alpha=128.0),
        encoder=EncoderConfig(bidirectional=True),
        data=DataConfig(
            train_examples=-1,
            validation_examples=-1,
            context="paragraph",
            context_buckets=(128, 192, 256, 512),
            question_buckets=(40, 64),
            questions_per_context=5,
            answer_tokens=24,
        ),
        optimizer=OptimizerConfig(lora_lr=8e-4, scorer_lr=1.6e-2, weight_decay=0.0),
        evaluation=EvaluationConfig(max_answer_tokens=24, baseline=False),
    ).to_config_dict()
