"""Keep what is read: entries of the cache, chosen by a scorer that is trained with the cut.

    python -m gistjax.train --config configs/full_context.py --workdir=runs/full_context
    python -m gistjax.train --config configs/kept.py --config.init_from=runs/full_context \\
        --config.teacher=runs/full_context --workdir=runs/kept

It starts from the full context, which is also its teacher, and answers at any ratio from 1 to 32.
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
    losses = {"teacher_forcing": 0.0, "generation": 0.0, "contrastive": 0.0}
    return CompressionConfig(
        architecture="select",
        ratio=8.0,
        ratios=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        ratios_per_question=2,
        select=SelectConfig(scorer="conv"),
        epochs=1.05,
        accumulation=1,
        batch_size=32,
        loss_weights={**losses, "distillation": 1.0, "kvzip": 1.0},
        lora=LoraConfig(rank=64, alpha=128.0),
        encoder=EncoderConfig(bidirectional=True),
        data=DataConfig(context="paragraph", questions_per_context=5, answer_tokens=24),
        optimizer=OptimizerConfig(lora_lr=6e-4, scorer_lr=2.4e-3, weight_decay=0.0),
        evaluation=EvaluationConfig(baseline=False),
    ).to_config_dict()
