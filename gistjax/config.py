"""The typed defaults of a run.

`CompressionConfig` is the whole configuration: the top level holds what an ablation varies, the groups hold the rest.
Config files return it as an `ml_collections.ConfigDict`, so that every field can be overridden on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from gistjax.errors import ConfigError

ARCHITECTURES = ("cross_attention", "conv", "pooling", "gist", "mean_pool", "none", "closed_book")
UNCOMPRESSED = ("none", "closed_book")
SELECTIONS = ("all", "first", "last", "random", "surprisal")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
TEXT_LOSSES = ("reconstruction", "continuation", "cloze")
DEFAULT_LOSS_WEIGHTS = {"teacher_forcing": 0.5, "generation": 0.3, "contrastive": 0.2}
DEFAULT_LOSS_WEIGHTS |= dict.fromkeys(("distillation", *TEXT_LOSSES), 0.0)


@dataclass(frozen=True)
class ModelConfig:
    """The base model. `path` overrides where `name` is looked up: a folder, a GGUF file, or `random`."""

    name: str = "llama-3.1-8b-instruct"
    path: str = ""
    dtype: str = "bfloat16"  # of the frozen weights and of compute
    scan_layers: bool = False  # stack the layers and scan over them: compiles fast, runs slower
    attention: str = "auto"  # of causal attention: cudnn (GPU, bf16) | xla | auto
    remat: bool = False  # recompute each layer's activations in the backward pass


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the base's projections."""

    rank: int = 16  # 0 means no adapter
    alpha: float = 32.0
    targets: tuple[str, ...] = PROJECTIONS


@dataclass(frozen=True)
class EncoderConfig:
    """What turns context tokens into the states that a head reads."""

    kind: str = "embeddings"  # embeddings | hidden | lora
    layers: int = -1  # base layers that the encoder runs; -1 is all of them
    bidirectional: bool = False  # lora only: context tokens see later ones too
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class DataConfig:
    """Questions, contexts and the static shapes that they are padded to."""

    name: str = "rajpurkar/squad"  # hub data set, used when path is empty
    path: str = ""  # folder with train.json and validation.json in SQuAD v1.1 format, or `sample`, or `facts`
    train_examples: int = 10_000
    validation_examples: int = 1_000  # -1 is all
    task: str = "answer"  # what is learned to be written: answer | question (to an answer)
    context: str = "filled"  # paragraph | filled
    select: str = "all"  # architecture none: tokens it reads, as many as slots: all | first | last | random | surprisal
    context_tokens: int = 512  # longest context; what `filled` fills up to
    context_buckets: tuple[int, ...] = (128, 192, 256, 384, 512)
    question_buckets: tuple[int, ...] = (30, 42, 64)  # question + answer tokens
    answer_tokens: int = 32  # longest gold answer kept in training, end token included
    questions_per_context: int = 1  # in training, so many questions share one compression
    max_dropped: float = (
        0.1  # stop if a larger share of the rows of a file, or of its lines of text, cannot be used
    )
    holdout: float = 0.0  # validate on this share of the training paragraphs, which are not trained on; 0: on validation


@dataclass(frozen=True)
class TextConfig:
    """Plain text to learn compression from, as rows of tasks beside (or instead of) the questions."""

    path: str = ""  # folder of *.jsonl or *.jsonl.gz files with {"title", "paragraphs": [...]}; empty is no text
    chunks: int = -1  # pieces of text that are used as contexts; -1 is all
    min_tokens: int = 64  # of a chunk; the longest is data.context_tokens
    target_tokens: int = 64  # longest text to write in reconstruction and continuation
    reconstruction: int = 1  # rows of a chunk: repeat the text behind a given beginning
    continuation: int = 1  # go on behind the chunk
    cloze: int = 2  # fill a blank in one of its sentences


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with two learning rates, cosine decay and warm-up."""

    compressor_lr: float = 1e-4
    lora_lr: float = 5e-5
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy answering and scoring."""

    batch_size: int = 32  # per device
    max_answer_tokens: int = 32
    sample_predictions: int = 50
    bootstrap_samples: int = 2_000
    baseline: bool = True  # also score the untuned base with the full context
    shuffled: bool = False  # also score answers from the slots of the wrong context
    slot_contexts: int = (
        2  # contexts of which slot_attention.json shows what each slot reads; 0 is none
    )


@dataclass(frozen=True)
class CompressionConfig:
    """One ablation: an architecture, its number of slots, and how it is trained and evaluated.

    >>> CompressionConfig(architecture="gist", target_length=64, epochs=10).architecture
    'gist'
    """

    architecture: str = "gist"
    target_length: int = 64  # slots M
    ratio: float = (
        0.0  # context tokens a slot: ⌈tokens / ratio⌉ slots, at most M; 0: M, at most one a token
    )
    ratios: tuple[float, ...] = ()  # in training, one of these is drawn for each context
    ratio_growth: float = 0.0  # share of the training over which they come in, from the first on
    slot_form: str = (
        "soft_tokens"  # soft_tokens | key_values (slots in the sequence, with the context)
    )
    slot_place: str = "behind"  # key_values: behind the context | inside, in the place of each window's last token
    slot_start: str = "head"  # head | window_means | window_ends: the head's slots are added to embeddings of the window
    slot_positions: str = "packed"  # packed | spread over the context's rotary positions
    connector: str = "rms"  # rms | linear | none
    init_from: str = ""  # directory of a finished run, or a compressor.safetensors, whose leaves training starts from
    epochs: float = 10.0
    max_steps: int = -1  # stop after so many optimizer steps; -1 follows epochs
    batch_size: int = 8  # rows per device and micro-step
    accumulation: int = 4  # micro-steps per optimizer step
    loss_weights: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_LOSS_WEIGHTS))
    contrastive_layers: int = 8  # base layers behind the contrastive target
    teacher: str = ""  # directory of a finished run, best of architecture none, that the distillation loss learns from
    teacher_tokens: int = 16  # of its most probable ones at each place, that are learned from
    seed: int = 42
    log_every: int = 10
    checkpoint_every: int = 500
    eval_every: int = -1  # validation F1 on the way, in steps; -1 only at the end
    tensorboard: bool = False  # also write events for TensorBoard
    on_bad_step: str = (
        "stop"  # stop | skip a step whose loss or gradient is not finite, or whose loss is a spike
    )
    spike_factor: float = (
        0.0  # a loss of more than so many times its recent mean is a spike; 0: none is
    )
    deterministic: bool = False  # on GPUs: the same bytes in every run, at some cost in speed
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def replace(self, **changes: object) -> CompressionConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompressionConfig:
        """The inverse of `to_json`; also takes what `to_config_dict` gives.

        Raises:
            ConfigError: naming an unknown key and the nearest known one, or a value of the wrong type.
        """
        return _from_dict(cls, values, "")

    def to_config_dict(self) -> ml_collections.ConfigDict:
        """A locked, typed ConfigDict, for config files; losses that are not named have weight 0, and can be overridden."""
        values = dataclasses.asdict(self)
        values["loss_weights"] = dict.fromkeys(DEFAULT_LOSS_WEIGHTS, 0.0) | self.loss_weights
        return ml_collections.ConfigDict(values).lock()


def _from_dict(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    defaults = cls()
    known = {f.name for f in dataclasses.fields(cls)}
    arguments = {}
    for key in values:
        if key not in known:
            raise ConfigError(f"config has no key {prefix + key!r}{did_you_mean(key, known)}")
        arguments[key] = _cast(getattr(defaults, key), values[key], prefix + key)
    return cls(**arguments)


def _cast(default: Any, value: Any, name: str) -> Any:
    """The value in its default's type: lists become tuples, whole numbers floats."""
    kind = type(default)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping | ml_collections.ConfigDict):
        return _from_dict(kind, value, name + ".")
    if kind is dict and isinstance(value, Mapping | ml_collections.ConfigDict):
        return {key: _cast(0.0, value[key], f"{name}.{key}") for key in value}
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(_cast(default[0] if default else 0.0, item, name) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"config key {name!r} takes {_kind(default)}, not {value!r}.")
    return value


def _kind(default: Any) -> str:
    if isinstance(default, tuple):
        return f"a tuple of {type((*default, 0.0)[0]).__name__}, such as {default or (2.0, 4.0)!r}"
    return f"a {type(default).__name__}, such as {default!r}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: the nearest known name, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}."


def validate(config: CompressionConfig) -> None:
    """Refuses what cannot run, before anything is loaded.

    Raises:
        ConfigError: naming the key, the cause and the fix.
    """
    _check_choices(config)
    _check_losses(config)
    _check_numbers(config)
    M, context = config.target_length, config.data.context_tokens
    for ok, message in (
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
            config.data.select == "all" or config.architecture == "none",
            f"data.select={config.data.select!r} is a control for the uncompressed model: it needs architecture='none'.",
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
            not config.tensorboard or importlib.util.find_spec("tensorboardX") is not None,
            "tensorboard=True needs a package: pip install -e '.[tensorboard]'.",
        ),
        (
            not any(map(config.loss_weights.get, TEXT_LOSSES)) or config.text.min_tokens <= context,
            f"text.min_tokens={config.text.min_tokens} is more than data.context_tokens={context}: lower it.",
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
            config.encoder.kind != "lora" or config.encoder.lora.rank > 0,
            "encoder.kind='lora' needs encoder.lora.rank above 0.",
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
        (
            [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) <= 1,
            "only one axis of mesh can be -1 (what is left).",
        ),
    ):  # fmt: skip
        if not ok:
            raise ConfigError(message)


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
