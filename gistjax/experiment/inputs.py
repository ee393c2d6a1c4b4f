"""The inputs of a run's training: its rows, the targets of its losses, the model it starts from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gistjax.compress.budget import keeping_all
from gistjax.compress.exported import load_exported
from gistjax.compress.parameters import import_trainable, split_model, start_from
from gistjax.config import DEFAULT_LOSS_WEIGHTS, TASKS, TEXT_LOSSES, CompressionConfig
from gistjax.data.batching import PlanSettings, TrainPlan, longest_answer
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Buckets, Dataset, Example, Targets, TokenizedExample, hash_rows
from gistjax.data.mixture import MixedPlan
from gistjax.data.prompts import Prompt
from gistjax.data.report import DataReport
from gistjax.data.text import find_text, load_articles, text_rows
from gistjax.errors import ConfigError
from gistjax.evaluation.controls import select_tokens, token_surprisal
from gistjax.experiment.base import (
    PretrainedBase,
    build_model,
    check_fit,
    check_profile,
    find_prompt,
    load_pretrained,
)
from gistjax.experiment.run_dir import RunDir
from gistjax.experiment.start import check_start, note_base
from gistjax.runtime.sharding import rows_per_step
from gistjax.runtime.tensors import hash_tensors
from gistjax.runtime.texts import user_path
from gistjax.training import targets
from gistjax.weights.registry import resolve

log = logging.getLogger(__name__)


def check_sources(config: CompressionConfig) -> dict[str, str]:
    """Check that model, earlier stage, teacher and text can be found, as far as the run reads them.

    Returns:
        Hashes of the earlier stage's and the teacher's weights, and of the profile, as
        `config.json` has them.

    Raises:
        CheckpointError: if there is no compressor at `init_from`, no run at `teacher` or no file at
            `select.profile`, or it is damaged.
        ConfigError: if the earlier stage's weights would mean something else here, or the profile
            is of another base.
        DataError: if there is no text at `text.path`, and a loss needs it.
        WeightsError: if there is no such model, or its file is damaged.
    """
    if config.model.path or "/" not in config.model.name:
        resolve(config.model, offline=True)
    if any(map(config.loss_weights.get, TEXT_LOSSES)):
        find_text(config.text.path)
    found = {}
    if config.init_from:
        found["start_sha256"] = check_start(config)
    if (parts := check_profile(config)) is not None:
        found["profile_sha256"] = hash_tensors({"parts": parts})
    if config.loss_weights.get("distillation"):
        teacher = RunDir(config.teacher)
        teacher.config()
        found["teacher_sha256"] = hash_tensors(load_exported(teacher.finished(teacher.exported))[0])
    return found


@dataclass(frozen=True)
class Inputs:
    """The base of a run, and its questions and text as tokens."""

    pretrained: PretrainedBase
    train: list[TokenizedExample]
    validation: list[TokenizedExample]
    examples: list[Example]  # those of `validation`, with their gold answers
    report: DataReport
    texts: list[TokenizedExample] = field(default_factory=list)  # rows of the text losses

    @cached_property
    def data_sha256(self) -> str:
        """Hash of the rows that are trained on (`hash_rows`)."""
        return hash_rows(self.train + self.texts)


def load_inputs(
    config: CompressionConfig,
    run: RunDir,
    mesh: Mesh,
    dataset: Dataset,
    pretrained: PretrainedBase | None = None,
) -> Inputs:
    """Load the base and, beside that, encode the questions, and the text if a loss needs it.

    Args:
        pretrained: a base that is loaded already.

    Raises:
        CheckpointError: if the run in the directory has another base or prompt, or other rows.
        ConfigError: if base and config do not fit.
        DataError: if no training question fits the limits, or the text cannot be read.
        WeightsError: if the weights cannot be found or fetched.
    """
    if pretrained:
        found = pretrained.source, pretrained.prompt
        check_fit(config, *found, trains=True)
    else:
        found = find_prompt(config, trains=True)
    _note_what_to_expect(config)
    with ThreadPoolExecutor(1) as pool:
        encoded = pool.submit(encode, config, dataset, found[1])
        pretrained = pretrained or load_pretrained(config, mesh, found)
        pretrained.check_run(run)
        note_base(config, pretrained.base_sha256)
        train, texts, validation, report = encoded.result()
    log.info("%s", report)
    inputs = Inputs(pretrained, train, validation, dataset.validation, report, texts)
    run.check_trained({"data_sha256": inputs.data_sha256})
    return inputs


def encode(
    config: CompressionConfig, dataset: Dataset, prompt: Prompt
) -> tuple[list[TokenizedExample], list[TokenizedExample], list[TokenizedExample], DataReport]:
    """Return rows of training questions, of text and of validation questions, and a report."""
    train, validation, report = encode_splits(dataset, prompt, config.data, config.seed)
    return train, _text_rows(config, prompt, train, report), validation, report


def _note_what_to_expect(config: CompressionConfig) -> None:
    """Say what the original experiments' losses give to a compressor without an earlier stage."""
    used = {name: weight for name, weight in config.loss_weights.items() if weight}
    original = {name: weight for name, weight in DEFAULT_LOSS_WEIGHTS.items() if weight}
    if config.compresses and not config.init_from and used == original:
        measured = config.model.known_as.lower().startswith("smollm2-135m")
        log.info(
            "note: with these losses and no earlier stage (init_from), compressors of SmolLM2-135M "
            "stayed near closed book (F1 0.07 to 0.13)%s; docs/recipe.md has a recipe that answers",
            "" if measured else "; another base was not measured",
        )


def plan_training(config: CompressionConfig, inputs: Inputs) -> TrainPlan | MixedPlan:
    """Return the rows to train on, questions and text, with their losses' targets, step by step.

    Raises:
        CheckpointError: if the teacher's run cannot be read, or has another base.
        ConfigError: if the teacher's run has another model or task.
        DataError: if there are too few rows for a step.
    """
    pretrained = inputs.pretrained
    rows = select(config, pretrained, inputs.train + inputs.texts)
    buckets = Buckets.of(config.data)
    settings = PlanSettings.of(config, rows_per_step(pretrained.mesh))
    views = _views(config, pretrained, rows)
    weights = config.data.mixture if inputs.train else {}  # of text alone there is one prompt
    if not weights:
        teacher = _teacher_targets(config, pretrained, inputs.train, longest_answer(rows))
        return TrainPlan(rows, buckets, settings, views, teacher)
    teachers = {}
    for name in weights:
        own = [row for row in inputs.train if row.task == name]
        if teacher := _teacher_targets(config, pretrained, own, longest_answer(own)):
            teachers[name] = teacher
    plan = MixedPlan(rows, weights, buckets, settings, views, teachers)
    log.info("mixture: %s", plan)
    return plan


def _text_rows(
    config: CompressionConfig,
    prompt: Prompt,
    questions: Sequence[TokenizedExample],
    report: DataReport,
) -> list[TokenizedExample]:
    """Return rows of the text losses that have a weight; context ids go on from the questions'."""
    unused: dict[str, Any] = {task: 0 for task in TEXT_LOSSES if not config.loss_weights.get(task)}
    if len(unused) == len(TEXT_LOSSES):
        return []
    return text_rows(
        load_articles(config.text.path, report, config.data.max_dropped),
        prompt,
        dataclasses.replace(config.text, **unused),
        config.data.context_tokens,
        max(config.data.question_buckets),
        config.seed,
        1 + max((row.context_id for row in questions), default=-1),
        report,
    )


def select(
    config: CompressionConfig, pretrained: PretrainedBase, rows: list[TokenizedExample]
) -> list[TokenizedExample]:
    """Return the rows as the model reads them: with the selected tokens alone, for that control."""
    if config.data.select == "all":
        return rows
    scores: Any = None
    if config.data.select == "surprisal":
        scores = token_surprisal(
            pretrained.base,
            rows,
            pretrained.prompt.prefix_ids,
            pretrained.mesh,
            config.evaluation.batch_size,
            Buckets.of(config.data),
        )
    return select_tokens(rows, config, scores)


def _views(
    config: CompressionConfig, pretrained: PretrainedBase, rows: list[TokenizedExample]
) -> np.ndarray | None:
    """Return the contrastive loss's target of each context, `[contexts, D]`, if it has a weight."""
    if not config.loss_weights.get("contrastive") or not rows:
        return None
    return targets.contrastive_targets(
        pretrained.base,
        rows,
        config.contrastive_layers,
        pretrained.mesh,
        config.evaluation.batch_size,
        Buckets.of(config.data),
    )


def _teacher_targets(
    config: CompressionConfig,
    pretrained: PretrainedBase,
    questions: list[TokenizedExample],
    answer_tokens: int,
) -> Targets | None:
    """Return the teacher's distributions on the gold answers, if the distillation has a weight.

    One that keeps entries keeps all of them, so that it teaches what a cut loses.
    """
    if not config.loss_weights.get("distillation"):
        return None
    run = RunDir(config.teacher)
    theirs = run.config()
    if theirs.model.name != config.model.name:
        raise ConfigError(
            f"the teacher {run} was trained on {theirs.model.name}, not on {config.model.name}: "
            "take one of the same base."
        )
    known = {TASKS.get(name) for name in theirs.data.task_names}
    if lacking := [name for name in config.data.task_names if TASKS[name] not in known]:
        raise ConfigError(
            f"the teacher {run} was trained with {', '.join(theirs.data.task_names)} "
            f"(data.task, data.tasks), not {', '.join(lacking)}."
        )
    pretrained.check_run(run)
    theirs = keeping_all(theirs) if theirs.selects else theirs
    graphdef, shapes, frozen = split_model(build_model(theirs, pretrained, seeded=False))
    return targets.distillation_targets(
        nnx.merge(graphdef, import_trainable(run.exported, shapes), frozen),
        select(theirs, pretrained, questions),
        answer_tokens,
        pretrained.mesh,
        config.evaluation.batch_size,
        Buckets.of(config.data),
    )


def start_model(config: CompressionConfig, pretrained: PretrainedBase) -> tuple[Any, Any, Any]:
    """Return the model that training starts from: structure, trainable leaves, frozen leaves.

    Its trainable leaves are seeded, or those of the earlier stage that `init_from` names.

    Raises:
        CheckpointError: if the earlier stage's leaves cannot be read, or do not fit.
    """
    seeded = not config.init_from
    graphdef, trainable, frozen = split_model(build_model(config, pretrained, seeded=seeded))
    if config.init_from:

        def make_seeded() -> Any:
            return split_model(build_model(config, pretrained))[1]

        path = user_path(config.init_from)
        trainable = start_from(path, trainable, config.architecture, make_seeded)
    return graphdef, trainable, frozen
