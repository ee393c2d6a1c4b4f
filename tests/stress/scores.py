"""F1 and EM against the official script's rules (`tests.helpers.official`), and the same scores at
any batch size.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gistjax.compress.parameters import import_trainable, split_model
from gistjax.config import CompressionConfig, DataConfig, EvaluationConfig, LoraConfig, ModelConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Example
from gistjax.data.prompts import make_prompt
from gistjax.evaluation.metrics import score
from gistjax.experiment.base import PretrainedBase, build_model
from gistjax.experiment.evaluator import make_generator
from gistjax.experiment.run_dir import SHIPPED, RunDir
from gistjax.runtime.sharding import one_device
from gistjax.weights.registry import load_base, resolve
from gistjax.weights.tokenizers import load_tokenizer
from tests.helpers.official import official, words

ROOT = Path(__file__).parents[2]
BATCHES = (1, 8, 32)
ADDED = 200
"""Questions that torchmetrics is given at a time: it adds scores up in fp32."""
ODD = (
    "", " ", "\u00a0\u2003", "the", "A", "...", "\u200b", "\u202e", "İ", "ß", "ﬁ", "Ǆ", "e\u0301", "é", "ＣＡＴ", "１２", "²",
    "a\u0301", "the\u0301", "an-the", "_a_", "a_b", "👩‍👩‍👧", "\ud83d\ude00", "—", "“quoted”", "don't", "U.S.A.", "\0", "\x1c", "A\x85B",
    "Ａ", "ª", "the\u00ad", "thé", "\ufeffthe", "ǅ", "ς Σ", "٣", "漢字 the 漢字", "न\u093eम", "a" * 5_000,
)  # fmt: skip
"""Predictions and parts of them that a normalisation may stumble over."""


def predictions(rng: random.Random, examples: Sequence[Example]) -> list[list[str]]:
    """Several predictions of each question: right ones, odd ones, empty ones, other ones."""
    made = []
    for example in examples:
        gold, odd = rng.choice(example.answers), rng.choice(ODD)
        parts = gold.split()
        made.append([
            gold, "", odd, f"The {gold.upper()}.", f"{odd} {gold}", gold + odd, " ".join(rng.sample(parts, len(parts))),
            gold[: rng.randrange(len(gold) + 1)], rng.choice(example.context.split()), rng.choice(examples).answers[0],
            example.question, example.context[:200], "".join(rng.choices("a tHe,.\u00a0é\u0301_-1", k=12)),
        ])  # fmt: skip
    return [list(column) for column in zip(*made, strict=True)]


def questions() -> list[Example]:
    """Every validation question of the real set where it is at hand (GISTJAX_SQUAD), else of the
    package.
    """
    folder = os.environ.get("GISTJAX_SQUAD", "data/squad")
    path = folder if (Path(folder) / "train.json").is_file() else "sample"
    return load_dataset(DataConfig(path=path, validation_examples=-1), 0).validation


def check_scores(examples: Sequence[Example], seed: int) -> tuple[int, list[str]]:
    """Predictions scored, and where ours is not the official score; the means are compared too."""
    wrong, number = [], 0
    for column in predictions(random.Random(seed), examples):
        ours = score(column, examples, samples=2, seed=0)
        theirs = np.array(
            [official(text, e.answers) for text, e in zip(column, examples, strict=True)]
        )
        number += len(column)
        for i in np.flatnonzero((ours.f1_N != theirs[:, 0]) | (ours.em_N != theirs[:, 1])):
            wrong.append(f"{column[i]!r} for {examples[i].answers}: {ours.f1_N[i]}, {theirs[i]}")
        if not np.allclose([ours.f1, ours.em], theirs.mean(0), atol=1e-12):
            wrong.append(f"means {ours.f1}, {ours.em} for {theirs.mean(0)}")
    return number, wrong


def check_torchmetrics(examples: Sequence[Example], seed: int) -> tuple[int, list[str]]:
    """The same against torchmetrics, which scores a side without words by the script of v2.0: those
    are left out.
    """
    from torchmetrics.functional.text import squad

    wrong, number = [], 0
    for column in predictions(random.Random(seed), examples):
        pairs = [
            (text, example)
            for text, example in zip(column, examples, strict=True)
            if words(text) and all(words(gold) for gold in example.answers)
        ]
        for start in range(0, len(pairs), ADDED):
            number += len(some := pairs[start : start + ADDED])
            given = [{"prediction_text": text, "id": e.id} for text, e in some]
            target = [
                {"answers": {"answer_start": [0] * len(e.answers), "text": list(e.answers)}, "id": e.id} for _, e in some
            ]  # fmt: skip
            theirs = squad(given, target)
            ours = score([text for text, _ in some], [e for _, e in some], samples=2, seed=0)
            apart = abs(100 * ours.f1 - float(theirs["f1"])) + abs(
                100 * ours.em - float(theirs["exact_match"])
            )
            if apart > 1e-3:
                wrong.append(f"{ours.f1}, {ours.em} for {theirs}")
    return number, wrong


def answers_at(config: CompressionConfig, run: Path | None) -> dict[int, dict[str, Any]]:
    """F1, EM and the answers of a model at each batch size; of drawn leaves where there is no run."""
    source, mesh = resolve(config.model), one_device()
    tokenizer = load_tokenizer(source)
    base = load_base(source, config.model, mesh)
    pretrained = PretrainedBase(mesh, source, base, tokenizer, make_prompt(tokenizer))
    squad = load_dataset(config.data, config.seed)
    _, rows, _ = encode_splits(squad, pretrained.prompt, config.data, config.seed)
    graphdef, trainable, frozen = split_model(build_model(config, pretrained))
    if run is None:
        rng = np.random.default_rng(0)
        trainable = jax.tree.map(
            lambda x: x + jnp.asarray(rng.normal(size=x.shape), x.dtype), trainable
        )
    else:
        trainable = import_trainable(run / "compressor.safetensors", trainable)
    found = {}
    for batch in BATCHES:
        evaluation = type(config.evaluation)(
            batch_size=batch, max_answer_tokens=config.evaluation.max_answer_tokens
        )
        generator = make_generator(config.replace(evaluation=evaluation), pretrained, graphdef)
        ids = generator(trainable, frozen, rows, f"batch {batch}").ids
        texts = [str(pretrained.tokenizer.decode(row, skip_special_tokens=True)) for row in ids]
        scores = score([text.strip() for text in texts], squad.validation, 2, 0)
        found[batch] = {"f1": scores.f1, "em": scores.em, "answers": texts}
    return found


def tiny_config() -> CompressionConfig:
    """Random weights."""
    return CompressionConfig(
        architecture="pooling", target_length=8, seed=3,
        model=ModelConfig(name="tiny-random", dtype="float32", scan_layers=True), lora=LoraConfig(rank=2),
        data=DataConfig(
            path="sample", context="paragraph", validation_examples=12, context_tokens=512,
            context_buckets=(512,), question_buckets=(256,),
        ),
        evaluation=EvaluationConfig(max_answer_tokens=4),
    )  # fmt: skip


def trained(validation: int) -> tuple[CompressionConfig, Path]:
    """The run that comes with the repository, in fp32, on the package's questions."""
    config = RunDir(SHIPPED).config()
    data = DataConfig(**{**vars(config.data), "path": "sample", "validation_examples": validation})
    model = ModelConfig(**{**vars(config.model), "dtype": "float32"})
    return config.replace(data=data, model=model), SHIPPED


def check_batches(found: dict[int, dict[str, Any]]) -> list[str]:
    """Where answers depend on the batch size."""
    first = found[BATCHES[0]]
    return [
        f"batch {batch}: F1 {found[batch]['f1']} for {first['f1']}"
        for batch in BATCHES
        if found[batch] != first
    ]
