"""The configuration of a run, typed, with defaults, bounds and a line of help for every key.

`CompressionConfig` is the whole configuration: the top level holds what an ablation varies, the
groups hold the rest. Config files return it as an `ml_collections.ConfigDict`, so that every key
can be overridden on the command line.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections

from gistjax.names import ARCHITECTURES as ARCHITECTURES
from gistjax.names import SELECT as SELECT
from gistjax.names import UNCOMPRESSED as UNCOMPRESSED
from gistjax.settings import from_0_1, from_dict, setting

ASKS = "question_aware"
"""The scorer that sees the question: no peer, but what the others could reach."""
SCORERS = (
    "kvzip",
    "expected_attention",
    "h2o",
    "snapkv",
    "keydiff",
    "knorm",
    "streaming",
    "random",
    ASKS,
)
"""What chooses the entries that are kept, without training (`gistjax.compress.scorers`)."""
LEARNED = ("conv", "pooling", "cross_attention", "gist")
"""What is trained to choose them (`gistjax.compress.learned`)."""
SLOT_KEYS = ("slot_form", "slot_place", "slot_start", "slot_positions", "connector")
"""Keys that are about slots alone."""
SPREADS = ("head", "layer", "all", "profile")
CONTEXTS = ("paragraph", "filled", "varied")
SELECTIONS = ("all", "first", "last", "random", "surprisal")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
TEXT_LOSSES = ("reconstruction", "continuation", "cloze")
_DATA = "gistjax.data."
TASKS: dict[str, str] = {
    "answer": _DATA + "squad",
    "question": _DATA + "question_writing",
    "squad": _DATA + "squad",
    "squad_v2": _DATA + "squad_v2",
    "hotpotqa": _DATA + "hotpotqa",
    "hotpotqa_supporting": _DATA + "hotpotqa_supporting",
    "gsm8k": _DATA + "gsm8k",
    "gsm8k_examples": _DATA + "gsm8k_examples",
    "gsm8k_numbers": _DATA + "gsm8k_numbers",
    "fairytaleqa": _DATA + "fairytaleqa",
    "fairytaleqa_sections": _DATA + "fairytaleqa_sections",
    "nq": _DATA + "nq",
    "jsonl": _DATA + "jsonl",
}
"""Modules of the tasks, each of which defines its `TASK` (`gistjax.data.tasks`)."""
DEFAULT_LOSS_WEIGHTS = {"teacher_forcing": 0.5, "generation": 0.3, "contrastive": 0.2}
DEFAULT_LOSS_WEIGHTS |= dict.fromkeys(("distillation", "kvzip", *TEXT_LOSSES), 0.0)


def file_name(path: str) -> str:
    """Return a path's last part, as others may know it; that of a hub's cache as the hub has it."""
    full = Path(path).expanduser().absolute()
    if full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--"):
        return full.parent.parent.name.removeprefix("models--").replace("--", "/")
    return Path(os.path.normpath(full)).name


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    name: str = setting("llama-3.1-8b-instruct", "a known model, or organisation/model on the hub")
    path: str = setting(
        "", "where its files are: a folder, a GGUF file, or `random`; empty: by name"
    )
    dtype: str = setting(
        "bfloat16", "how the frozen weights are stored", choices=("bfloat16", "float32")
    )
    compute_dtype: str = setting(
        "", "of activations and products; empty: as stored", choices=("", "bfloat16", "float32")
    )
    scan_layers: bool = setting(False, "scan over stacked layers: compiles fast, runs slower")
    attention: str = setting("auto", "maskless attention by", choices=("auto", "cudnn", "xla"))
    remat: bool = setting(False, "recompute each layer's activations in the backward pass")

    @property
    def known_as(self) -> str:
        """Name of the base that is used: that of its file where a path alone is given."""
        if self.path in ("", "random") or self.name != type(self)().name:
            return self.name
        return file_name(self.path)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the base's projections."""

    rank: int = setting(16, "rank; 0 is no adapter", least=0)
    alpha: float = setting(32.0, "scale: outputs are multiplied by alpha / rank", above=0)
    targets: tuple[str, ...] = setting(PROJECTIONS, "adapted projections", choices=PROJECTIONS)


@dataclass(frozen=True)
class EncoderConfig:
    """The model that turns context tokens into the states that an architecture reads."""

    kind: str = setting(
        "embeddings",
        "token embeddings, states of the frozen base, or of the base with LoRA",
        choices=("embeddings", "hidden", "lora"),
    )
    layers: int = setting(-1, "base layers that the encoder runs; -1 is all", least=-1)
    pool: int = setting(
        0, "last layers, before each of which two positions become their mean", least=0
    )
    bidirectional: bool = setting(False, "lora, or select: context tokens see later ones too")
    lora: LoraConfig = setting(LoraConfig, "the encoder's adapter")


@dataclass(frozen=True)
class SelectConfig:
    """Architecture `select`: which entries of the key/value cache are kept."""

    scorer: str = setting(
        "kvzip", "what says how much an entry is worth", choices=(*SCORERS, *LEARNED)
    )
    spread: str = setting(
        "all",
        "what the budget is for: each KV head, each layer, all; or parts by profile",
        choices=SPREADS,
    )
    profile: str = setting(
        "", "file of the parts that KV heads keep (`python -m gistjax.profile` writes it)"
    )
    bytes: int = setting(0, "most bytes of entries a context, in place of ratio; 0: none", least=0)
    warmup: float = setting(
        0.15, "learned scorer: share of the training in which KVzip chooses for it", least=0, most=1
    )
    temperature: float = setting(
        1.0, "learned scorer: of the gate through which the loss teaches it; 0: no gate", least=0
    )
    bits: tuple[int, ...] = setting(
        (16,), "widths of entries in training, drawn for each question", choices=(16, 8, 4, 3, 2)
    )
    joined: int = setting(1, "most contexts of a step that a training question reads", least=1)


@dataclass(frozen=True)
class DataConfig:
    """Questions, contexts and the static shapes that they are padded to."""

    name: str = setting("rajpurkar/squad", "data set on the hub, used if path is empty")
    path: str = setting(
        "", "folder with train and validation .json (SQuAD v1.1) or .jsonl; `sample`; `facts`"
    )
    train_examples: int = setting(10_000, "training questions, drawn by seed; -1 is all", least=-1)
    validation_examples: int = setting(1_000, "validation questions; -1 is all", least=-1)
    task: str = setting(
        "answer", "what is asked and learned (docs/data.md has a table)", choices=TASKS
    )
    tasks: dict[str, float] = setting(
        dict, "instead of data.task: several, each with its weight in answer tokens"
    )
    context: str = setting(
        "filled", "a paragraph alone, or among others (docs/data.md)", choices=CONTEXTS
    )
    select: str = setting(
        "all", "architecture none: the tokens it reads, as many as slots", choices=SELECTIONS
    )
    context_tokens: int = setting(512, "longest context", least=1)
    context_buckets: tuple[int, ...] = setting(
        (128, 192, 256, 384, 512), "context lengths to pad to", ascending=True
    )
    question_buckets: tuple[int, ...] = setting(
        (30, 42, 64), "lengths of question and answer together to pad to", ascending=True
    )
    answer_tokens: int = setting(32, "longest answer to train on, unless the task says", least=2)
    questions_per_context: int = setting(1, "questions that share a context in training", least=1)
    max_dropped: float = setting(
        0.1, "stop if a larger share of rows cannot be used", least=0, most=1
    )
    holdout: float = setting(
        0.0, "validate on this share of the training paragraphs instead", least=0, below=1
    )

    def __post_init__(self) -> None:
        """Leave out known tasks of weight 0: they are not in the mixture."""
        tasks = {name: w for name, w in self.tasks.items() if w or name not in TASKS}
        object.__setattr__(self, "tasks", tasks)

    @property
    def mixture(self) -> dict[str, float]:
        """The weight of each task of a mixture, in the order of `TASKS`; empty for one task."""
        return {name: self.tasks[name] for name in TASKS if name in self.tasks}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that are asked: those of the mixture, or the one."""
        return tuple(self.mixture) or (self.task,)

    @property
    def main_task(self) -> str:
        """The task whose prompt a finished model is asked with: the first of most weight."""
        return max(self.task_names, key=lambda name: self.mixture.get(name, 0.0))


@dataclass(frozen=True)
class TextConfig:
    """Plain text to learn compression from, beside the questions or instead of them."""

    path: str = setting("", 'folder of *.jsonl(.gz) with {"title", "paragraphs"}; empty is no text')
    chunks: int = setting(-1, "pieces of text that are used as contexts; -1 is all", least=-1)
    min_tokens: int = setting(64, "shortest piece; the longest is data.context_tokens", least=1)
    target_tokens: int = setting(64, "longest text of reconstruction, continuation", least=2)
    reconstruction: int = setting(1, "rows a piece: repeat the text after its beginning", least=0)
    continuation: int = setting(1, "rows a piece: go on after the piece", least=0)
    cloze: int = setting(2, "rows a piece: fill a blank in one of its sentences", least=0)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with two learning rates, cosine decay and warm-up."""

    compressor_lr: float = setting(1e-4, "peak learning rate of the compressor", least=0)
    lora_lr: float = setting(5e-5, "peak learning rate of the adapters", least=0)
    scorer_lr: float = setting(2e-4, "peak learning rate of a learned scorer", least=0)
    warmup_fraction: float = setting(0.05, "share of the steps with rising rate", least=0, below=1)
    weight_decay: float = setting(0.01, "decay of matrices, times the learning rate", least=0)
    clip_norm: float = setting(1.0, "largest norm of all gradients together", above=0)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis."""

    data: int = setting(-1, "split rows; -1 takes the devices that are left", least=1, special=-1)
    fsdp: int = setting(1, "split rows and parameters", least=1, special=-1)
    tensor: int = setting(1, "split heads and feed-forward width", least=1, special=-1)


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy answering and scoring."""

    batch_size: int = setting(32, "rows a device", least=1)
    max_answer_tokens: int = setting(32, "longest answer, if its task has no longer ones", least=1)
    sample_predictions: int = setting(50, "rows of sample_predictions.json", least=0)
    bootstrap_samples: int = setting(2_000, "draws of contexts for the intervals", least=1)
    baseline: bool = setting(True, "also score the untuned base with the full context")
    shuffled: bool = setting(False, "also score answers from the slots of the wrong context")


@dataclass(frozen=True)
class CompressionConfig:
    """One ablation: an architecture, its number of slots, and how it is trained and evaluated.

    >>> CompressionConfig(architecture="gist", target_length=64, epochs=10).architecture
    'gist'
    """

    architecture: str = setting(
        "gist",
        "what is under test, a control, two (conv+gist), or a class: my_module.Mine",
        choices=(*ARCHITECTURES, SELECT, *UNCOMPRESSED),
        or_path=True,
    )
    target_length: int = setting(
        64, "slots M; of architecture select, entries a KV head where there is no ratio", least=1
    )
    ratio: float = setting(
        0.0, "tokens a slot: ⌈tokens / ratio⌉ slots, at most M; 0: M, at most one a token"
    )
    ratios: tuple[float, ...] = setting(
        (), "in training, one is drawn for each context; of select, for each question"
    )
    ratios_per_question: int = setting(
        1, "select: so many of `ratios` are drawn for each question", least=1
    )
    ratio_growth: float = setting(
        0.0, "share of the training over which they come in, first to last", least=0, most=1
    )
    slot_form: str = setting(
        "soft_tokens",
        "slots as soft tokens, or as keys and values made beside the context",
        choices=("soft_tokens", "key_values"),
    )
    slot_place: str = setting(
        "behind",
        "key_values: after the context, or in place of each window's last token",
        choices=("behind", "inside"),
    )
    slot_start: str = setting(
        "architecture",
        "the architecture's slots alone, or added to embeddings of the window",
        choices=("architecture", "window_means", "window_ends"),
    )
    slot_positions: str = setting(
        "packed", "slots side by side, or spread over the context", choices=("packed", "spread")
    )
    connector: str = setting(
        "rms", "how slots are made to look like embeddings", choices=("rms", "linear", "none")
    )
    init_from: str = setting("", "run directory or compressor.safetensors to start training from")
    epochs: float = setting(10.0, "passes over the training rows", least=0)
    max_steps: int = setting(-1, "stop after so many optimizer steps; -1 follows epochs", least=-1)
    batch_size: int = setting(8, "rows a device and micro-step", least=1)
    accumulation: int = setting(4, "micro-steps of an optimizer step", least=1)
    loss_weights: dict[str, float] = setting(
        lambda: dict(DEFAULT_LOSS_WEIGHTS), "weight of each loss; 0 removes its cost"
    )
    contrastive_layers: int = setting(8, "base layers before the contrastive target", least=0)
    teacher: str = setting("", "run directory that the distillation loss learns from")
    seed: int = setting(42, "of parameters, data order and draws", least=0, below=2**32)
    log_every: int = setting(10, "steps between lines of metrics.jsonl", least=1)
    checkpoint_every: int = setting(500, "steps between checkpoints", least=1)
    eval_every: int = setting(
        -1, "steps between validations; -1 only at the end", least=1, special=-1
    )
    tensorboard: bool = setting(False, "also write events for TensorBoard")
    on_bad_step: str = setting(
        "stop",
        "stop, or skip a step whose loss or gradient is not finite, or a spike",
        choices=("stop", "skip"),
    )
    spike_factor: float = setting(
        0.0, "a loss of more than so many times its recent mean is a spike; 0: none is", least=0
    )
    deterministic: bool = setting(False, "on GPUs: the same bytes in every run, but slower")
    model: ModelConfig = setting(ModelConfig, "the base model")
    lora: LoraConfig = setting(LoraConfig, "the decoder's adapter")
    encoder: EncoderConfig = setting(EncoderConfig, "the encoder")
    select: SelectConfig = setting(SelectConfig, "what is kept of the key/value cache")
    data: DataConfig = setting(DataConfig, "questions and contexts")
    text: TextConfig = setting(TextConfig, "plain text")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "the optimizer")
    mesh: MeshConfig = setting(MeshConfig, "devices along each axis")
    evaluation: EvaluationConfig = setting(EvaluationConfig, "answering and scoring")

    @property
    def compresses(self) -> bool:
        """Whether the architecture has slots; the controls `none` and `closed_book` have none."""
        return self.architecture not in UNCOMPRESSED

    @property
    def selects(self) -> bool:
        """Whether entries of the key/value cache are kept in place of slots."""
        return self.architecture == SELECT

    @property
    def learns_scores(self) -> bool:
        """Whether what is kept is chosen by a scorer that is trained."""
        return self.selects and self.select.scorer in LEARNED

    @property
    def rounds(self) -> bool:
        """Whether training reads kept entries in fewer bits than they have."""
        return self.selects and any(bits < 16 for bits in self.select.bits)

    def replace(self, **changes: Any) -> CompressionConfig:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the config as plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompressionConfig:
        """Return the config of plain values (`to_json`), of a ConfigDict, or of a run of 0.1.

        Raises:
            ConfigError: naming an unknown key and the nearest known one, or a wrong type.
        """
        config: CompressionConfig = from_dict(cls, from_0_1(values))
        return config

    def to_config_dict(self) -> ml_collections.ConfigDict:
        """Return a locked, typed ConfigDict for config files, with every loss and every task."""
        values = dataclasses.asdict(self)
        values["loss_weights"] = dict.fromkeys(DEFAULT_LOSS_WEIGHTS, 0.0) | self.loss_weights
        values["data"]["tasks"] = dict.fromkeys(TASKS, 0.0) | self.data.tasks
        return ml_collections.ConfigDict(values).lock()
