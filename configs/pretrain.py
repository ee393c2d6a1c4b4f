"""Learn compression from plain text, at ratios from 2 to 16; `qa.py` goes on from there.

    python -m gistjax.train --config configs/pretrain.py --config.text.path=FOLDER \\
        --workdir=runs/pretrain
"""

from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
)

TEXT_LOSSES = {"reconstruction": 1.0, "continuation": 0.5, "cloze": 1.0}


def get_config():
    return CompressionConfig(
        architecture="pooling",
        target_length=256,
        ratio=4.0,
        ratios=(2.0, 4.0, 4.0, 8.0, 8.0, 16.0),
        ratio_growth=0.2,
        slot_form="key_values",
        slot_place="inside",
        slot_start="window_ends",
        epochs=4.0,
        max_steps=4_500,
        batch_size=32,
        accumulation=1,
        loss_weights={"teacher_forcing": 0.0, "generation": 0.0, "contrastive": 0.0, **TEXT_LOSSES},
        model=ModelConfig(name="smollm2-135m-instruct"),
        lora=LoraConfig(rank=32, alpha=64.0),
        encoder=EncoderConfig(kind="lora", lora=LoraConfig(rank=32, alpha=64.0)),
        data=DataConfig(
            train_examples=0,
            validation_examples=0,
            context="paragraph",
            context_tokens=256,
            context_buckets=(256,),
            question_buckets=(64,),
            questions_per_context=4,
        ),
        text=TextConfig(
            chunks=60_000,
            min_tokens=96,
            target_tokens=40,
            reconstruction=2,
            continuation=1,
            cloze=5,
        ),
        optimizer=OptimizerConfig(compressor_lr=1.5e-3, lora_lr=5e-4, warmup_fraction=0.02),
        checkpoint_every=1_000,
        log_every=50,
    ).to_config_dict()
