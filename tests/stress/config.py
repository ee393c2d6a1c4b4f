"""The run that is broken: a tiny random base, two epochs of 6 steps, evaluated on the way."""

from gistjax.config import CompressionConfig, DataConfig, EvaluationConfig, LoraConfig, ModelConfig


def get_config():
    return CompressionConfig(
        architecture="gist",
        target_length=4,
        epochs=2.0,
        batch_size=2,
        accumulation=1,
        log_every=2,
        checkpoint_every=3,
        eval_every=4,
        contrastive_layers=1,
        deterministic=True,
        loss_weights={"teacher_forcing": 0.7, "contrastive": 0.3},
        model=ModelConfig(name="tiny-random", dtype="float32", scan_layers=True),
        lora=LoraConfig(rank=2),
        data=DataConfig(
            path="sample",
            context="paragraph",
            context_tokens=512,
            context_buckets=(512,),
            question_buckets=(256,),
            train_examples=15,
            validation_examples=6,
        ),
        evaluation=EvaluationConfig(
            batch_size=2, max_answer_tokens=2, bootstrap_samples=20, baseline=False
        ),
    ).to_config_dict()
