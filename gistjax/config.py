"""The typed defaults of a run.

`CompressionConfig` is the whole configuration: the top level holds what an ablation varies, the groups hold the rest.
Config files return it as an `ml_collections.ConfigDict`, so that every field can be overridden on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from gistjax.errors import ConfigError

ARCHITECTURES = (
    "cross_attention", "conv", "pooling", "gist", "mean_pool", "mark", "none", "closed_book",
)  # fmt: skip
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
