"""Configurations of tiny runs that many tests share, and a run directory without training."""

import dataclasses
from pathlib import Path

from gistjax.compress.parameters import export_trainable, split_model
from gistjax.config import (
    SLOT_KEYS,
    CompressionConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    SelectConfig,
)
from gistjax.experiment import base
from gistjax.experiment.run_dir import RunDir, provenance

ROOT = Path(__file__).parents[2]

ASKED = CompressionConfig(
    architecture="pooling",
    target_length=64,
    ratio=8.0,
    slot_start="window_means",
    slot_positions="spread",
    model=ModelConfig(name="tiny-random", dtype="float32"),
    lora=LoraConfig(rank=2),
    data=DataConfig(
        path="sample",
        context="paragraph",
        context_tokens=512,
        context_buckets=(512,),
        question_buckets=(192, 256),
        validation_examples=4,
    ),
    evaluation=EvaluationConfig(
        batch_size=1, max_answer_tokens=6, bootstrap_samples=10, baseline=False
    ),
)
SELECTED = ASKED.replace(
    architecture="select",
    ratio=4.0,
    loss_weights={"teacher_forcing": 1.0},
    **{key: getattr(CompressionConfig(), key) for key in (*SLOT_KEYS, "encoder")},
)
"""The same, entries of the cache kept."""
KNORM = SELECTED.replace(select=SelectConfig("knorm", "all"))
"""Chosen by the norms of keys."""


def write_run(rundir, config):
    """A run directory as if training had ended after no step."""
    rundir.mkdir(exist_ok=True)
    pretrained = base.load_pretrained(config)
    RunDir(rundir).write_about(config, pretrained)
    _, trainable, _ = split_model(base.build_model(config, pretrained))
    export_trainable(trainable, rundir / "compressor.safetensors", provenance(config))
    return rundir


TRAINED = CompressionConfig(
    architecture="pooling",
    target_length=8,
    max_steps=6,
    batch_size=1,
    accumulation=2,
    log_every=1,
    checkpoint_every=2,
    contrastive_layers=1,
    model=ASKED.model,
    lora=ASKED.lora,
    data=dataclasses.replace(
        ASKED.data, context_tokens=192, context_buckets=(192,), validation_examples=9
    ),
    evaluation=EvaluationConfig(batch_size=1, max_answer_tokens=4, bootstrap_samples=50),
)
UNSCORED = TRAINED.replace(data=dataclasses.replace(TRAINED.data, validation_examples=0))
"""Training alone, where no score is looked at."""
