"""The table of kept entries: the same answers as evaluation gives, cell by cell."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from absl import flags

from gistjax import compare, evaluate
from gistjax.compress.profile import write_profile
from gistjax.compress.spread import PROFILE_RATIOS
from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    SelectConfig,
)
from gistjax.errors import ConfigError, DataError
from gistjax.runtime import cli
from gistjax.runtime.tensors import load_tensors, save_tensors
from launch.select_table import __main__ as select_table
from launch.select_table import table as tables
from launch.select_table.answers import Answers, as_predictions, complete, read
from tests.helpers.runs import write_run

FULL = CompressionConfig(
    architecture="none",
    loss_weights={"teacher_forcing": 1.0, "contrastive": 0.0},
    model=ModelConfig(name="tiny-facts", dtype="float32"),
    lora=LoraConfig(rank=2),
    data=DataConfig(
        path="facts",
        context="paragraph",
        context_tokens=96,
        context_buckets=(64, 96),
        question_buckets=(24, 32),
        validation_examples=11,
    ),
    evaluation=EvaluationConfig(
        batch_size=2, max_answer_tokens=6, bootstrap_samples=20, baseline=False
    ),
    mesh=MeshConfig(data=1),
)
SPREADS, RATIOS = ("head", "layer", "all", "profile"), (2.0, 8.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A full-context run whose adapter does something, and profiles of two scorers."""
    folder = tmp_path_factory.mktemp("runs")
    rundir = write_run(folder / "full", FULL)
    arrays, metadata = load_tensors(rundir / "compressor.safetensors")
    rng = np.random.default_rng(0)
    noisy = {name: x + 0.02 * rng.normal(size=x.shape) for name, x in arrays.items()}
    noisy = {name: x.astype(np.float32) for name, x in noisy.items()}
    save_tensors(rundir / "compressor.safetensors", noisy, metadata)
    return rundir
