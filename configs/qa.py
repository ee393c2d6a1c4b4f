"""Answer questions on SQuAD's paragraphs from slots, four tokens each, after `pretrain.py`.

    python -m gistjax.train --config configs/qa.py --config.init_from=runs/pretrain \\
        [--config.ratio=8 | --config.ratios=2.,4.,8.,16.]

`ratios` draws one for each context: such a compressor takes any of them (`gistjax.ask --ratio`).
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
        target_length=512,
        ratio=4.0,
        slot_form="key_values",
        slot_place="inside",
        slot_start="window_ends",
        epochs=3.0,
        batch_size=8,
        accumulation=1,
        loss_weights={"teacher_forcing": 1.0, "generation": 0.0, "contrastive": 0.0},
        model=ModelConfig(
            name="smollm2-135m-instruct", scan_layers=True
        ),  # short: compiling counts
        lora=LoraConfig(rank=32, alpha=64.0),
        encoder=EncoderConfig(kind="lora", lora=LoraConfig(rank=32, alpha=64.0)),
        data=DataConfig(
            validation_examples=-1,
            context="paragraph",
            context_tokens=512,
            context_buckets=(512,),
            question_buckets=(64,),
            questions_per_context=8,
            answer_tokens=24,
        ),
        optimizer=OptimizerConfig(compressor_lr=4e-4, lora_lr=4e-4),
        evaluation=EvaluationConfig(
            batch_size=128, max_answer_tokens=24, baseline=False, shuffled=True
        ),
        log_every=20,
    ).to_config_dict()
