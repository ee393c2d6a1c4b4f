"""Learn in minutes on a CPU: a packaged base of 0.4 million parameters looks up made-up facts.

python -m gistjax.sweep --sweep launch/sweeps/quickstart.json --out runs/quickstart
"""

from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
)


def get_config():
    return CompressionConfig(
        architecture="pooling",
        target_length=96,
        ratio=4.0,
        ratios=(1.0, 2.0, 4.0),
        ratio_growth=0.6,
        slot_start="window_means",
        slot_positions="spread",
        max_steps=400,
        batch_size=8,
        accumulation=1,
        loss_weights={"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0},
        model=ModelConfig(name="tiny-facts", dtype="float32", scan_layers=True),
        lora=LoraConfig(rank=32, alpha=64.0),
        encoder=EncoderConfig(
            kind="lora", bidirectional=True, lora=LoraConfig(rank=32, alpha=64.0)
        ),
        data=DataConfig(
            path="facts",
            train_examples=-1,
            validation_examples=400,
            context="paragraph",
            context_tokens=96,
            context_buckets=(96,),
            question_buckets=(24,),
            questions_per_context=10,
            answer_tokens=6,
        ),
        optimizer=OptimizerConfig(compressor_lr=3e-3, lora_lr=3e-3),
        evaluation=EvaluationConfig(
            batch_size=100, max_answer_tokens=6, baseline=False, shuffled=True
        ),
        log_every=20,
    ).to_config_dict()
