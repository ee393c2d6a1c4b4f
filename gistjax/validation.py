"""The rules of a configuration: refused before anything is loaded.

Bounds and choices of single keys stand with the keys, in `gistjax.config`; here are the rules
between them.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

from gistjax.config import (
    ASKS,
    DEFAULT_LOSS_WEIGHTS,
    LEARNED,
    SLOT_KEYS,
    TASKS,
    TEXT_LOSSES,
    CompressionConfig,
    DataConfig,
)
from gistjax.errors import ConfigError, did_you_mean
from gistjax.names import STACKED, stack_problem
from gistjax.settings import walk

log = logging.getLogger(__name__)

SCORER_KEYS = ("select.warmup", "select.temperature", "optimizer.scorer_lr")
"""Keys that are about the training of a scorer alone."""

Rules = tuple[tuple[bool, str], ...]
"""Conditions that must hold, each with the message where it does not."""


def validate(config: CompressionConfig) -> None:
    """Refuse what cannot run.

    Raises:
        ConfigError: naming the key, the cause and the fix.
    """
    keys = list(walk(config))
    check_choices(config, [name for name, _, _ in keys])
    _check_losses(config)
    _check_tasks(config.data)
    for name, value, metadata in keys:
        _check_bounds(name, value, metadata)
    for rules in (_select_rules, _slot_rules, _encoder_rules, _data_rules, _run_rules):
        for holds, message in rules(config):
            if not holds:
                raise ConfigError(message)


def check_choices(config: CompressionConfig, keys: Collection[str]) -> None:
    """Refuse values that these dotted keys do not have.

    Raises:
        ConfigError: naming the key and the nearest value that there is.
    """
    for name, value, metadata in walk(config):
        if name in keys:
            _check_choice(name, value, metadata)


def _check_choice(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices = metadata.get("choices")
    if choices is None:
        return
    chosen = value if isinstance(value, tuple) else (value,)
    for one in chosen:
        if metadata.get("or_path") and STACKED in one:
            if problem := stack_problem(one):
                raise ConfigError(problem)
            continue
        is_path = metadata.get("or_path") and "." in one
        if one not in choices and not is_path:
            raise ConfigError(f"{name} cannot be {one!r}{did_you_mean(one, map(str, choices))}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{name}={value} names one of them twice.")


def _check_bounds(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Check one key against its bounds; NaN is within none."""
    if "special" in metadata:
        if value != metadata["special"] and value < metadata["least"]:
            raise ConfigError(f"{name}={value} must be {metadata['special']} or at least 1.")
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value} must be finite.")
    if "least" in metadata and not metadata["least"] <= value < math.inf:
        raise ConfigError(f"{name}={value} must be at least {metadata['least']}.")
    if "above" in metadata and not metadata["above"] < value < math.inf:
        raise ConfigError(f"{name}={value} must be above {metadata['above']}.")
    if "below" in metadata and value >= metadata["below"]:
        raise ConfigError(f"{name}={value} must be below {metadata['below']}.")
    if "most" in metadata and value > metadata["most"]:
        raise ConfigError(f"{name}={value} is a share: it must be at most {metadata['most']}.")
    if metadata.get("ascending") and not _ascends(value):
        raise ConfigError(f"{name}={value} must be positive and ascending.")


def _ascends(values: tuple[int, ...]) -> bool:
    return bool(values) and values[0] >= 1 and list(values) == sorted(set(values))


def _check_losses(config: CompressionConfig) -> None:
    for name, weight in config.loss_weights.items():
        if name not in DEFAULT_LOSS_WEIGHTS:
            hint = did_you_mean(name, DEFAULT_LOSS_WEIGHTS)
            raise ConfigError(f"loss_weights has no loss {name!r}{hint}")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"loss_weights.{name}={weight} must be 0 (off) or above.")
    if not any(config.loss_weights.values()):
        raise ConfigError("every weight in loss_weights is 0, so there is nothing to train on.")
    for name in TEXT_LOSSES:
        if config.loss_weights.get(name) and not (config.text.path and getattr(config.text, name)):
            raise ConfigError(
                f"loss_weights.{name} needs rows of that task: give --config.text.path, a folder "
                f"of text, and --config.text.{name} above 0."
            )
    if config.loss_weights.get("distillation") and not config.teacher:
        raise ConfigError(
            "loss_weights.distillation needs a model to learn from: give --config.teacher, the "
            "directory of a finished run such as that of configs/full_context.py."
        )
    if config.loss_weights.get("contrastive") and (not config.compresses or config.selects):
        raise ConfigError(
            f"architecture={config.architecture!r} has no slots for the contrastive loss: set "
            "--config.loss_weights.contrastive=0."
        )


def _check_tasks(data: DataConfig) -> None:
    for name, weight in data.tasks.items():
        if name not in TASKS:
            raise ConfigError(f"data.tasks has no task {name!r}{did_you_mean(name, TASKS)}")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"data.tasks.{name}={weight} must be 0 (not asked) or above.")
    if not data.tasks:
        return
    if data.task != DataConfig().task:
        raise ConfigError(
            f"data.task={data.task!r} is one task, and data.tasks has {', '.join(data.tasks)}: "
            "give one of the two."
        )
    if not data.path and data.name != DataConfig().name:
        raise ConfigError(
            f"data.name={data.name!r} is one data set, and data.tasks has several tasks: give "
            "--config.data.path, a folder with one folder a task, or leave data.name out."
        )


def check_trains(config: CompressionConfig) -> None:
    """Refuse a training that has nothing to train on, or keys that it would not read.

    A run that is only evaluated may have both.

    Raises:
        ConfigError: naming what to give, or to leave out.
    """
    if config.selects and config.select.scorer == ASKS:
        raise ConfigError(
            f"select.scorer={ASKS!r} looks at the question, and training keeps a context for "
            "several: it is for `python -m gistjax.evaluate` alone. Give another."
        )
    _check_scorer_keys(config)
    if config.data.train_examples:
        return
    if config.loss_weights.get("distillation"):
        raise ConfigError(
            "loss_weights.distillation learns from answers to questions: give "
            "--config.data.train_examples above 0, or set --config.loss_weights.distillation=0."
        )
    if not any(config.loss_weights.get(task) for task in TEXT_LOSSES):
        raise ConfigError(
            "there is nothing to train on: give --config.data.train_examples above 0, or text "
            "(--config.text.path) and a weight of one of its tasks. A finished run is scored by "
            "`python -m gistjax.evaluate`."
        )


def _check_scorer_keys(config: CompressionConfig) -> None:
    """Refuse settings of a scorer's training where none is trained."""
    changed = _changed(config, SCORER_KEYS)
    if config.learns_scores or not changed:
        return
    what = f"architecture={config.architecture!r}"
    if config.selects:
        what = f"select.scorer={config.select.scorer!r}"
    raise ConfigError(
        f"{', '.join(changed)}: this is about the training of a scorer, and {what} trains none: "
        "leave that out, or set --config.architecture=select and --config.select.scorer to one of "
        f"{LEARNED}."
    )


def _changed(config: CompressionConfig, keys: tuple[str, ...]) -> list[str]:
    """Return those of the dotted keys that have another value than by default."""
    default = {key: value for key, value, _ in walk(type(config)())}
    return [key for key, value, _ in walk(config) if key in keys and value != default[key]]


def check_refines(config: CompressionConfig, steps: object) -> None:
    """Refuse steps of what is not refined.

    Raises:
        ConfigError: saying what to change.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f"refine={steps!r} must be a number of steps, at least 1.")
    if not config.selects:
        raise ConfigError(
            f"refine is of kept entries, and architecture={config.architecture!r} keeps none: "
            "leave it out."
        )


def note_budget(config: CompressionConfig) -> None:
    """Say how much is kept of each context where entries are, and nothing says how many."""
    if config.selects and not (config.ratio or config.ratios or config.select.bytes):
        log.info(
            "note: no ratio is set, so %d entries a KV head are kept of any context, on average "
            "(target_length); --config.ratio=8 keeps one of eight",
            config.target_length,
        )


def _select_rules(config: CompressionConfig) -> Rules:
    select = config.select
    changed = _changed(config, SLOT_KEYS)
    return (
        (
            config.selects or select == type(select)(),
            f"select.* is for architecture='select', not {config.architecture!r}: leave it as it "
            "is, or set --config.architecture=select.",
        ),
        (
            not config.selects or not changed,
            f"architecture='select' has no slots, which {', '.join(changed)} would be about: leave "
            "that out.",
        ),
        (
            select.joined <= config.batch_size,
            f"select.joined={select.joined} contexts are more than the batch_size="
            f"{config.batch_size} of a micro-batch: lower it, or raise that.",
        ),
        (
            select.joined == 1 or not config.rounds,
            "select.joined and select.bits: entries are rounded in each text alone, so train for "
            "one of them.",
        ),
        (
            not select.profile or select.spread == "profile",
            f"select.profile={select.profile!r} is read with --config.select.spread=profile, not "
            f"{select.spread!r}.",
        ),
        (
            not select.bytes or config.ratio == 0 and not config.ratios,
            f"select.bytes={select.bytes} is a budget, and so are ratio={config.ratio:g} and "
            f"ratios={config.ratios}: set --config.ratio=0 --config.ratios=, or select.bytes to 0.",
        ),
        (
            config.learns_scores or not config.loss_weights.get("kvzip"),
            "loss_weights.kvzip teaches a scorer, which is to be learned: set "
            f"--config.architecture=select and --config.select.scorer to one of {LEARNED}.",
        ),
        (
            config.selects or config.ratios_per_question == 1,
            "ratios_per_question is for architecture='select', whose contexts are read once for "
            "all ratios: leave it at 1.",
        ),
        (
            config.ratios_per_question <= max(len(config.ratios), 1),
            f"ratios_per_question={config.ratios_per_question} is more than there are in "
            f"ratios={config.ratios}: lower the first.",
        ),
    )


def _slot_rules(config: CompressionConfig) -> Rules:
    M, context = config.target_length, config.data.context_tokens
    key_values = config.slot_form == "key_values"
    return (
        (
            context >= M,
            f"target_length={M} slots are more than data.context_tokens={context}: "
            "lower the first.",
        ),
        (
            not key_values or config.compresses,
            "slot_form='key_values' needs slots, which "
            f"architecture={config.architecture!r} has not.",
        ),
        (
            key_values or config.slot_place == "behind",
            "slot_place='inside' needs slot_form='key_values': soft tokens stand in place of the "
            "whole context.",
        ),
        (
            config.ratio == 0 or 1 <= config.ratio < math.inf,
            f"ratio={config.ratio} must be 0 (a fixed number of slots) or at least 1.",
        ),
        (
            all(1 <= ratio < math.inf for ratio in config.ratios)
            and list(config.ratios) == sorted(config.ratios),
            f"ratios={config.ratios} must be at least 1, and ascend.",
        ),
    )


def _encoder_rules(config: CompressionConfig) -> Rules:
    encoder, key_values = config.encoder, config.slot_form == "key_values"
    return (
        (
            not config.selects or (encoder.kind != "hidden" and encoder.layers < 0),
            "architecture='select' keeps entries of a pass through all layers: set "
            "encoder.kind='lora' or 'embeddings' (no adapter of its own) and encoder.layers=-1.",
        ),
        (
            not key_values or not encoder.bidirectional,
            "slot_form='key_values' makes keys and values in a causal pass: set "
            "encoder.bidirectional=False.",
        ),
        (
            not key_values or (encoder.kind != "hidden" and encoder.layers < 0),
            "slot_form='key_values' makes keys and values in a pass through all layers: set "
            "encoder.kind='lora' or 'embeddings' (no adapter of its own) and encoder.layers=-1.",
        ),
        (
            not encoder.bidirectional
            or encoder.kind == "lora"
            or (config.selects and config.lora.rank > 0),
            "encoder.bidirectional=True needs an adapter (lora.rank) with architecture='select', "
            "with others encoder.kind='lora': the untuned base is causal.",
        ),
        (
            encoder.kind != "lora" or encoder.lora.rank > 0,
            "encoder.kind='lora' needs encoder.lora.rank above 0.",
        ),
        (
            encoder.kind != "lora" or encoder.layers != 0,
            "encoder.kind='lora' needs layers to adapt: set encoder.layers above 0 or to -1 "
            "(all), or encoder.kind='embeddings'.",
        ),
    )


def _data_rules(config: CompressionConfig) -> Rules:
    data, context = config.data, config.data.context_tokens
    return (
        (
            data.select == "all" or config.architecture == "none",
            f"data.select={data.select!r} is a control for the uncompressed model: it needs "
            "architecture='none'.",
        ),
        (
            not any(map(config.loss_weights.get, TEXT_LOSSES)) or config.text.min_tokens <= context,
            f"text.min_tokens={config.text.min_tokens} is more than "
            f"data.context_tokens={context}: lower it.",
        ),
        (
            max(data.context_buckets) >= context,
            f"the largest of data.context_buckets={data.context_buckets} must hold "
            f"data.context_tokens={context}.",
        ),
        (
            data.answer_tokens <= max(data.question_buckets),
            f"data.answer_tokens={data.answer_tokens} is more than the largest of "
            f"data.question_buckets={data.question_buckets}: lower the first.",
        ),
    )


def _run_rules(config: CompressionConfig) -> Rules:
    mesh, model = config.mesh, config.model
    return (
        (
            not config.tensorboard or importlib.util.find_spec("tensorboardX") is not None,
            "tensorboard=True needs a package: pip install -e '.[tensorboard]'.",
        ),
        (
            config.spike_factor == 0 or config.spike_factor > 1,
            f"spike_factor={config.spike_factor} must be 0 (no loss is a spike) or above 1.",
        ),
        (
            not config.deterministic or model.attention != "cudnn" or model.scan_layers,
            "deterministic=True cannot have model.attention='cudnn' in unrolled layers, where XLA "
            "then fails: leave it at 'auto'.",
        ),
        (
            [mesh.data, mesh.fsdp, mesh.tensor].count(-1) <= 1,
            "only one axis of mesh can be -1 (what is left).",
        ),
    )
