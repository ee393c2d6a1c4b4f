"""What a configuration may not be: refused before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib.util
import math

from gistjax.config import (
    ARCHITECTURES,
    DEFAULT_LOSS_WEIGHTS,
    PROJECTIONS,
    SELECTIONS,
    TEXT_LOSSES,
    UNCOMPRESSED,
    CompressionConfig,
    did_you_mean,
)  # fmt: skip
from gistjax.errors import ConfigError

Rules = tuple[tuple[bool, str], ...]
"""What has to hold, and what to tell where it does not."""


def validate(config: CompressionConfig) -> None:
    """Refuses what cannot run.

    Raises:
        ConfigError: naming the key, the cause and the fix.
    """
    _check_choices(config)
    _check_losses(config)
    _check_numbers(config)
    for rules in (_slot_rules, _data_rules, _run_rules):
        for holds, message in rules(config):
            if not holds:
                raise ConfigError(message)


def _slot_rules(config: CompressionConfig) -> Rules:
    """Of encoder, head and slots."""
    M, context = config.target_length, config.data.context_tokens
    return (
        (context >= M, f"target_length={M} slots are more than data.context_tokens={context}: lower the first."),
        (
            config.slot_form == "soft_tokens" or config.architecture not in UNCOMPRESSED,
            f"slot_form='key_values' needs slots, which architecture={config.architecture!r} has not.",
        ),
        (
            config.slot_form == "key_values" or config.slot_place == "behind",
            "slot_place='inside' needs slot_form='key_values': soft tokens stand in place of the whole context.",
        ),
        (
            config.slot_form == "soft_tokens" or not config.encoder.bidirectional,
            "slot_form='key_values' makes keys and values in a causal pass: set encoder.bidirectional=False.",
        ),
        (
            config.slot_form == "soft_tokens" or (config.encoder.kind != "hidden" and config.encoder.layers < 0),
            "slot_form='key_values' makes keys and values in a pass through all layers: set encoder.kind='lora' or "
            "'embeddings' (no adapter of its own) and encoder.layers=-1.",
        ),
        (
            config.ratio == 0 or 1 <= config.ratio < math.inf,
            f"ratio={config.ratio} must be 0 (a fixed number of slots) or at least 1.",
        ),
        (
            all(1 <= ratio < math.inf for ratio in config.ratios) and list(config.ratios) == sorted(config.ratios),
            f"ratios={config.ratios} must be at least 1, and ascend.",
        ),
        (
            not config.encoder.bidirectional or config.encoder.kind == "lora",
            "encoder.bidirectional=True needs encoder.kind='lora': the untuned base is causal.",
        ),
        (
            config.encoder.kind != "lora" or config.encoder.lora.rank > 0,
            "encoder.kind='lora' needs encoder.lora.rank above 0.",
        ),
        (
            config.encoder.kind != "lora" or config.encoder.layers != 0,
            "encoder.kind='lora' needs layers to adapt: set encoder.layers above 0 or to -1 (all), or encoder.kind='embeddings'.",
        ),
    )  # fmt: skip


def _data_rules(config: CompressionConfig) -> Rules:
    """Of questions, contexts and text."""
    context = config.data.context_tokens
    return (
        (
            config.data.select == "all" or config.architecture == "none",
            f"data.select={config.data.select!r} is a control for the uncompressed model: it needs architecture='none'.",
        ),
        (
            not any(map(config.loss_weights.get, TEXT_LOSSES)) or config.text.min_tokens <= context,
            f"text.min_tokens={config.text.min_tokens} is more than data.context_tokens={context}: lower it.",
        ),
        (
            max(config.data.context_buckets) >= context,
            f"the largest of data.context_buckets={config.data.context_buckets} must hold "
            f"data.context_tokens={context}.",
        ),
        (
            config.data.answer_tokens <= max(config.data.question_buckets),
            f"data.answer_tokens={config.data.answer_tokens} is more than the largest of "
            f"data.question_buckets={config.data.question_buckets}: lower the first.",
        ),
    )  # fmt: skip


def _run_rules(config: CompressionConfig) -> Rules:
    """Of how a run goes."""
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
            not config.deterministic or config.model.attention != "cudnn" or config.model.scan_layers,
            "deterministic=True cannot have model.attention='cudnn' in unrolled layers, where XLA then fails: leave it at "
            "'auto'.",
        ),
        (
            [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) <= 1,
            "only one axis of mesh can be -1 (what is left).",
        ),
    )  # fmt: skip


def _check_choices(config: CompressionConfig) -> None:
    choices: list[tuple[str, str, tuple[str, ...]]] = [
        ("architecture", config.architecture, ARCHITECTURES),
        ("slot_form", config.slot_form, ("soft_tokens", "key_values")),
        ("slot_place", config.slot_place, ("behind", "inside")),
        ("slot_start", config.slot_start, ("head", "window_means", "window_ends")),
        ("slot_positions", config.slot_positions, ("packed", "spread")),
        ("connector", config.connector, ("rms", "linear", "none")),
        ("on_bad_step", config.on_bad_step, ("stop", "skip")),
        ("encoder.kind", config.encoder.kind, ("embeddings", "hidden", "lora")),
        ("data.task", config.data.task, ("answer", "question")),
        ("data.context", config.data.context, ("paragraph", "filled")),
        ("data.select", config.data.select, SELECTIONS),
        ("model.dtype", config.model.dtype, ("bfloat16", "float32")),
        ("model.attention", config.model.attention, ("auto", "cudnn", "xla")),
    ]
    for name, lora in (("lora", config.lora), ("encoder.lora", config.encoder.lora)):
        choices += [(f"{name}.targets", target, PROJECTIONS) for target in lora.targets]
        if len(set(lora.targets)) < len(lora.targets):
            raise ConfigError(f"{name}.targets={lora.targets} names a projection twice.")
    for key, value, known in choices:
        if value not in known:
            raise ConfigError(f"{key} cannot be {value!r}{did_you_mean(value, known)}")


def check_trains(config: CompressionConfig) -> None:
    """That a run has anything to train on, which one that is only evaluated need not have.

    Raises:
        ConfigError: if it has not.
    """
    if config.data.train_examples:
        return
    if config.loss_weights.get("distillation"):
        raise ConfigError(
            "loss_weights.distillation learns from answers to questions: give --config.data.train_examples above 0, or "
            "set --config.loss_weights.distillation=0."
        )
    if not any(config.loss_weights.get(task) for task in TEXT_LOSSES):
        raise ConfigError(
            "there is nothing to train on: give --config.data.train_examples above 0, or text (--config.text.path) and a "
            "weight of one of its tasks. A finished run is scored by `python -m gistjax.evaluate`."
        )


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
                f"loss_weights.{name} needs rows of that task: give --config.text.path, a folder of text, and "
                f"--config.text.{name} above 0."
            )
    if config.loss_weights.get("distillation") and not config.teacher:
        raise ConfigError(
            "loss_weights.distillation needs a model to learn from: give --config.teacher, the directory of a finished run "
            "such as that of configs/full_context.py."
        )
    if config.architecture in UNCOMPRESSED and config.loss_weights.get("contrastive"):
        raise ConfigError(
            f"architecture={config.architecture!r} has no slots for the contrastive loss: set "
            "--config.loss_weights.contrastive=0."
        )


def _check_numbers(config: CompressionConfig) -> None:
    d, o, e, t = config.data, config.optimizer, config.evaluation, config.text
    at_least: list[tuple[str, float, float]] = [
        ("target_length", config.target_length, 1),
        ("batch_size", config.batch_size, 1),
        ("accumulation", config.accumulation, 1),
        ("max_steps", config.max_steps, -1),
        ("contrastive_layers", config.contrastive_layers, 0),
        ("teacher_tokens", config.teacher_tokens, 1),
        ("log_every", config.log_every, 1),
        ("checkpoint_every", config.checkpoint_every, 1),
        ("epochs", config.epochs, 0),
        ("spike_factor", config.spike_factor, 0),
        ("seed", config.seed, 0),
        ("lora.rank", config.lora.rank, 0),
        ("lora.alpha", config.lora.alpha, 1e-12),
        ("encoder.layers", config.encoder.layers, -1),
        ("encoder.lora.rank", config.encoder.lora.rank, 0),
        ("encoder.lora.alpha", config.encoder.lora.alpha, 1e-12),
        ("data.train_examples", d.train_examples, -1),
        ("data.validation_examples", d.validation_examples, -1),
        ("data.context_tokens", d.context_tokens, 1),
        ("data.questions_per_context", d.questions_per_context, 1),
        ("ratio_growth", config.ratio_growth, 0),
        ("data.holdout", d.holdout, 0),
        ("data.max_dropped", d.max_dropped, 0),
        ("text.chunks", t.chunks, -1),
        ("text.min_tokens", t.min_tokens, 1),
        ("text.target_tokens", t.target_tokens, 2),
        ("text.reconstruction", t.reconstruction, 0),
        ("text.continuation", t.continuation, 0),
        ("text.cloze", t.cloze, 0),
        ("data.answer_tokens", d.answer_tokens, 2),
        ("optimizer.compressor_lr", o.compressor_lr, 0),
        ("optimizer.lora_lr", o.lora_lr, 0),
        ("optimizer.weight_decay", o.weight_decay, 0),
        ("optimizer.clip_norm", o.clip_norm, 1e-12),
        ("optimizer.warmup_fraction", o.warmup_fraction, 0),
        ("optimizer.b1", o.b1, 0),
        ("optimizer.b2", o.b2, 0),
        ("evaluation.batch_size", e.batch_size, 1),
        ("evaluation.max_answer_tokens", e.max_answer_tokens, 1),
        ("evaluation.bootstrap_samples", e.bootstrap_samples, 1),
        ("evaluation.slot_contexts", e.slot_contexts, 0),
        ("evaluation.sample_predictions", e.sample_predictions, 0),
    ]
    for key, value, least in at_least:
        if not least <= value < math.inf:
            raise ConfigError(f"{key}={value} must be at least {least}.")
    below: list[tuple[str, float, float]] = [
        ("seed", config.seed, 2**32),  # JAX's keys take 32 bits
        ("optimizer.warmup_fraction", o.warmup_fraction, 1),
        ("optimizer.b1", o.b1, 1),
        ("optimizer.b2", o.b2, 1),
        ("data.holdout", d.holdout, 1),
    ]
    for key, value, bound in below:
        if value >= bound:
            raise ConfigError(f"{key}={value} must be below {bound}.")
    for key, value in (("ratio_growth", config.ratio_growth), ("data.max_dropped", d.max_dropped)):
        if value > 1:
            raise ConfigError(f"{key}={value} is a share: it must be at most 1.")
    sizes = {f"mesh.{axis}": size for axis, size in dataclasses.asdict(config.mesh).items()}
    for key, size in {**sizes, "eval_every": config.eval_every}.items():
        if size != -1 and size < 1:
            raise ConfigError(f"{key}={size} must be -1 or at least 1.")
    for key in ("context_buckets", "question_buckets"):
        buckets = getattr(d, key)
        if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
            raise ConfigError(f"data.{key}={buckets} must be positive and ascending.")
