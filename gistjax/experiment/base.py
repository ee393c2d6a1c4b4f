"""The parts of a run, put together from its config: base, prompt, data, model. Training and evaluation share it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from gistjax.compress.architectures import check_architecture
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.parameters import (
    find_exported,
    import_trainable,
    split_model,
    start_from,
)
from gistjax.config import TEXT_LOSSES, CompressionConfig
from gistjax.data.batching import PlanSettings, TrainPlan, longest_answer
from gistjax.data.encoding import check_buckets
from gistjax.data.example import Buckets, Targets, TokenizedExample
from gistjax.data.prompts import Prompt
from gistjax.data.report import DataReport
from gistjax.data.tasks import load_task
from gistjax.data.text import find_text, load_articles, text_rows
from gistjax.errors import ConfigError, WeightsError
from gistjax.evaluation.controls import select_tokens, token_surprisal
from gistjax.evaluation.generate import Generator
from gistjax.experiment.run_dir import EXPORTED, load_config
from gistjax.model.llama import Llama
from gistjax.runtime.devices import start_jax
from gistjax.runtime.sharding import make_mesh, put, replicated, rows_per_step, shardings_of
from gistjax.training import targets
from gistjax.weights.registry import Source, base_hash, load_base, resolve
from gistjax.weights.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainedBase:
    """What does not depend on the architecture: devices, base weights, tokenizer and prompt."""

    mesh: Mesh
    source: Source
    base: Llama
    tokenizer: PreTrainedTokenizerFast
    prompt: Prompt

    @cached_property
    def base_sha256(self) -> str:
        """Of the base's names and bytes (`base_hash`)."""
        return base_hash(self.base)


def find_prompt(config: CompressionConfig) -> tuple[Source, Prompt]:
    """Where the base comes from, and the prompt of its tokenizer; no weights are touched.

    Raises:
        WeightsError: if base or tokenizer cannot be had, or do not belong together.
    """
    source = resolve(config.model)
    tokenizer = load_tokenizer(source)
    if len(tokenizer) > source.config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {len(tokenizer)} tokens, but {config.model.name} embeds {source.config.vocab_size}: "
            "it belongs to another model. Put the model's own tokenizer files beside its weights."
        )
    return source, load_task(config.data.task).prompt(tokenizer)


def load_pretrained(
    config: CompressionConfig, found: tuple[Source, Prompt] | None = None
) -> PretrainedBase:
    """Loads the base onto the mesh.

    Args:
        found: what `find_prompt` returned, where it was called before.

    Raises:
        ConfigError: if mesh and devices do not fit, or as `check_fit` says.
        WeightsError: if the weights cannot be had, or as `find_prompt` says.
    """
    start_jax(config)
    mesh = make_mesh(config.mesh)
    source, prompt = found or find_prompt(config)
    check_fit(config, source, prompt)
    base = load_base(source, config.model, mesh)
    return PretrainedBase(mesh, source, base, prompt.tokenizer, prompt)


def check_sources(config: CompressionConfig) -> None:
    """Whether the model, an earlier stage, a teacher and text, as far as a run reads them, can be found on this machine.

    Raises:
        CheckpointError: if there is no compressor at `init_from`, or no run at `teacher`.
        DataError: if there is no text at `text.path`, and a loss needs it.
        WeightsError: if there is no such model, or its file is damaged.
    """
    if config.model.path or "/" not in config.model.name:
        resolve(config.model, offline=True)
    if config.init_from:
        find_exported(Path(config.init_from))
    if config.loss_weights.get("distillation"):
        load_config(Path(config.teacher))
    if any(map(config.loss_weights.get, TEXT_LOSSES)):
        find_text(config.text.path)


def check_fit(config: CompressionConfig, source: Source, prompt: Prompt) -> None:
    """Whether base and prompt can take what the configuration asks for.

    Raises:
        ConfigError: if prompt and buckets, or the longest sequence or the encoder's layers and the base do not fit.
    """
    check_buckets(prompt, config.data)
    base = source.config
    check_architecture(config, base)
    if config.encoder.layers > base.n_layers:
        raise ConfigError(
            f"encoder.layers={config.encoder.layers}, but the base has {base.n_layers} layers: lower it, or "
            "set it to -1 for all."
        )
    tokens = max(config.data.question_buckets) + config.evaluation.max_answer_tokens
    longest = len(prompt.prefix_ids) + config.data.context_tokens + tokens
    if longest > base.max_positions:
        raise ConfigError(
            f"the base reads {base.max_positions} tokens, but prefix, context and question take up to "
            f"{longest}: lower --config.data.context_tokens."
        )


def plan_training(
    config: CompressionConfig,
    pretrained: PretrainedBase,
    questions: list[TokenizedExample],
    report: DataReport,
) -> TrainPlan:
    """The rows to train on, questions and text, and what their losses compare with, step by step; logs what was left out.

    Raises:
        DataError: if the text cannot be read, or there are too few rows for a step.
        GistjaxError: as `teach` says.
    """
    texts = encode_text(config, pretrained.prompt, questions, report)
    log.info("%s", report)
    rows = select(config, pretrained, questions + texts)
    return TrainPlan(
        rows,
        Buckets.of(config.data),
        PlanSettings.of(config, rows_per_step(pretrained.mesh)),
        views=_view(config, pretrained, rows),
        teacher=distillation_targets(config, pretrained, questions, longest_answer(rows)),
    )


def _view(
    config: CompressionConfig, pretrained: PretrainedBase, rows: list[TokenizedExample]
) -> Any:
    """What the base makes of the contexts; None where the contrastive loss is off."""
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


def encode_text(
    config: CompressionConfig,
    prompt: Prompt,
    questions: Sequence[TokenizedExample],
    report: DataReport,
) -> list[TokenizedExample]:
    """Rows of the text tasks that have a weight, their context ids behind those of the questions.

    Raises:
        DataError: if the text cannot be read, or gives no row.
    """
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
    """The rows as the model reads them: for a control of selected tokens, with those alone."""
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


def distillation_targets(
    config: CompressionConfig,
    pretrained: PretrainedBase,
    questions: list[TokenizedExample],
    answer_tokens: int,
) -> Targets | None:
    """What the teacher makes of the training questions; None where the distillation loss is off.

    Raises:
        CheckpointError: if the teacher's run cannot be read.
        ConfigError: if it has another base, or another task.
    """
    if not config.loss_weights.get("distillation"):
        return None
    rundir = Path(config.teacher)
    theirs = load_config(rundir)
    if theirs.model.name != config.model.name:
        raise ConfigError(
            f"the teacher {rundir} was trained on {theirs.model.name}, not on {config.model.name}: take one of the same base."
        )
    if theirs.data.task != config.data.task:
        raise ConfigError(
            f"the teacher {rundir} was trained with data.task={theirs.data.task}, not {config.data.task}."
        )
    from gistjax.experiment.evaluator import check_base  # which imports this module

    check_base(rundir, pretrained)
    graphdef, shapes, frozen = split_model(model_on(theirs, pretrained, seeded=False))
    trainable = import_trainable(rundir / EXPORTED, shapes)
    return targets.distillation_targets(
        nnx.merge(graphdef, trainable, frozen),
        select(theirs, pretrained, questions),
        answer_tokens,
        pretrained.mesh,
        config.evaluation.batch_size,
        Buckets.of(config.data),
    )


def model_on(
    config: CompressionConfig, pretrained: PretrainedBase, seeded: bool = True
) -> CompressedLM:
    """`build_model` on a foundation."""
    return build_model(config, pretrained.base, pretrained.mesh, seeded)


def build_model(
    config: CompressionConfig, base: Llama, mesh: Mesh, seeded: bool = True
) -> CompressedLM:
    """The model of one ablation on a base, its trainable leaves seeded and on the mesh.

    Args:
        seeded: False leaves shapes with shardings in place of the trainable leaves, for those of a file: making them takes
            dozens of small programs.
    """

    def make() -> CompressedLM:
        return CompressedLM(base, config, jax.random.key(config.seed))

    model = make() if seeded else nnx.eval_shape(make)
    model.base = base  # not as shapes
    if model.compressor is not None:
        rms = jax.jit(_embedding_rms, out_shardings=replicated(mesh))(base.embedding[...])
        model.compressor.connector.embedding_rms.set_value(rms)
    graphdef, trainable, frozen = split_model(model)
    shardings = shardings_of(trainable, mesh)
    return nnx.merge(
        graphdef,
        put(trainable, shardings) if seeded else jax.tree.map(_shape, trainable, shardings),
        put(frozen, shardings_of(frozen, mesh)),
    )


def _shape(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _embedding_rms(embedding_VxD: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(embedding_VxD.astype(jnp.float32))))


def start_model(config: CompressionConfig, pretrained: PretrainedBase) -> tuple[Any, Any, Any]:
    """The model that training starts from, as structure, trained leaves and frozen leaves: seeded, or of an earlier stage.

    Raises:
        CheckpointError: if the earlier stage's leaves cannot be read, or do not fit.
    """
    graphdef, trainable, frozen = split_model(
        model_on(config, pretrained, seeded=not config.init_from)
    )
    if config.init_from:

        def seeded() -> Any:
            return split_model(model_on(config, pretrained))[1]

        path = Path(config.init_from)
        trainable = start_from(path, trainable, config.architecture, seeded)
    return graphdef, trainable, frozen


def make_generator(
    config: CompressionConfig, pretrained: PretrainedBase, graphdef: Any
) -> Generator:
    """Answers questions with a model of this structure."""
    return Generator(
        graphdef,
        pretrained.mesh,
        max_tokens=config.evaluation.max_answer_tokens,
        end_id=pretrained.prompt.end_id,
        batch_size=config.evaluation.batch_size * rows_per_step(pretrained.mesh),
        buckets=Buckets.of(config.data),
    )


def untuned_full_context(config: CompressionConfig) -> CompressionConfig:
    """The upper control that was not trained: the base itself, with the whole context."""
    lora = type(config.lora)(rank=0)
    return config.replace(architecture="none", slot_form="soft_tokens", lora=lora)
