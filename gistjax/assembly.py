"""The parts of a run, put together from its config: base, prompt, data, model. Training and evaluation share it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from gistjax.config import TEXT_LOSSES, CompressionConfig
from gistjax.data.prompts import Prompt, Row, make_prompt
from gistjax.data.report import DataReport
from gistjax.data.text import load_articles, text_rows
from gistjax.errors import ConfigError, WeightsError
from gistjax.evaluation.controls import select_tokens, token_surprisal
from gistjax.evaluation.generation import Answerer
from gistjax.model.compressed_lm import CompressedLM
from gistjax.model.heads import HEADS
from gistjax.model.llama import Llama
from gistjax.sharding import make_mesh, rows_per_step, shardings_of
from gistjax.training.step import split_model
from gistjax.weights.registry import Source, load_base, load_tokenizer, resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Foundation:
    """What does not depend on the architecture: devices, base weights, tokenizer and prompt."""

    mesh: Mesh
    source: Source
    base: Llama
    tokenizer: PreTrainedTokenizerFast
    prompt: Prompt


def lay_foundation(config: CompressionConfig) -> Foundation:
    """Loads the base onto the mesh.

    Raises:
        ConfigError: if the mesh does not fit the devices, or the longest sequence does not fit the base.
        WeightsError: if weights or tokenizer cannot be had, or do not belong together.
    """
    mesh = make_mesh(config.mesh)
    keep_compiled_programs()
    source = resolve(config.model)
    tokenizer = load_tokenizer(source)
    if len(tokenizer) > source.config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {len(tokenizer)} tokens, but {config.model.name} embeds {source.config.vocab_size}: "
            "it belongs to another model. Put the model's own tokenizer files beside its weights."
        )
    prompt = make_prompt(tokenizer)
    _check_length(config, len(prompt.prefix_ids), source.config.max_positions)
    base = load_base(source, config.model, mesh)
    return Foundation(mesh, source, base, tokenizer, prompt)


def keep_compiled_programs() -> None:
    """Lets a second start of the same run find its programs in `JAX_COMPILATION_CACHE_DIR`, by default the user's cache.

    Not on CPUs, where XLA warns about programs that another machine's features went into.
    """
    if jax.default_backend() == "cpu":
        return
    jax.config.update("jax_compilation_cache_dir", str(compile_cache()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def compile_cache() -> Path:
    """The folder of compiled programs."""
    if folder := jax.config.values["jax_compilation_cache_dir"]:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gistjax" / "xla"


def _check_length(config: CompressionConfig, prefix: int, max_positions: int) -> None:
    tokens = max(config.data.question_buckets) + config.evaluation.max_answer_tokens
    longest = prefix + config.data.context_tokens + tokens
    if longest > max_positions:
        raise ConfigError(
            f"the base reads {max_positions} tokens, but prefix, context and question take up to "
            f"{longest}: lower --config.data.context_tokens."
        )


def encode_text(
    config: CompressionConfig, prompt: Prompt, questions: Sequence[Row], report: DataReport
) -> list[Row]:
    """Rows of the text tasks that have a weight, their context ids behind those of the questions.

    Raises:
        DataError: if the text cannot be read, or gives no row.
    """
    unused: dict[str, Any] = {task: 0 for task in TEXT_LOSSES if not config.loss_weights.get(task)}
    if len(unused) == len(TEXT_LOSSES):
        return []
    return text_rows(
        load_articles(config.text.path, report),
        prompt,
        dataclasses.replace(config.text, **unused),
        config.data.context_tokens,
        max(config.data.question_buckets),
        config.seed,
        1 + max((row.context_id for row in questions), default=-1),
        report,
    )


def select(config: CompressionConfig, foundation: Foundation, rows: list[Row]) -> list[Row]:
    """The rows as the model reads them: for a control of selected tokens, with those alone."""
    if config.data.select == "all":
        return rows
    scores: Any = None
    if config.data.select == "surprisal":
        scores = token_surprisal(
            foundation.base,
            rows,
            foundation.prompt.prefix_ids,
            foundation.mesh,
            config.evaluation.batch_size,
            config.data.context_buckets,
            config.data.question_buckets,
        )
    return select_tokens(rows, config, scores)


def model_on(config: CompressionConfig, foundation: Foundation) -> CompressedLM:
    """`build_model` on a foundation."""
    prefix_ids = foundation.prompt.prefix_ids
    return build_model(config, foundation.base, prefix_ids, foundation.mesh)


def build_model(
    config: CompressionConfig, base: Llama, prefix_ids: tuple[int, ...], mesh: Mesh
) -> CompressedLM:
    """The model of one ablation on a base, its trainable leaves seeded and on the mesh."""
    model = CompressedLM(base, config, prefix_ids, jax.random.key(config.seed))
    if model.compressor is not None:
        rms = jax.jit(_embedding_rms)(base.embedding[...])
        model.compressor.connector.embedding_rms[...] = jax.device_put(rms, jax.devices()[0])
    graphdef, trainable, frozen = split_model(model)
    return nnx.merge(
        graphdef,
        jax.device_put(trainable, shardings_of(trainable, mesh)),
        jax.device_put(frozen, shardings_of(frozen, mesh)),
    )


def _embedding_rms(embedding_VxD: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(embedding_VxD.astype(jnp.float32))))


def make_answerer(config: CompressionConfig, foundation: Foundation, graphdef: Any) -> Answerer:
    """Answers questions with a model of this structure."""
    return Answerer(
        graphdef,
        foundation.mesh,
        max_tokens=config.evaluation.max_answer_tokens,
        end_id=foundation.prompt.end_id,
        batch_size=config.evaluation.batch_size * rows_per_step(foundation.mesh),
        context_buckets=config.data.context_buckets,
        question_buckets=config.data.question_buckets,
    )


def untuned_full_context(config: CompressionConfig) -> CompressionConfig:
    """The upper control that was not trained: the base itself, with the whole context."""
    lora = type(config.lora)(rank=0)
    return config.replace(architecture="none", slot_form="soft_tokens", lora=lora)


def compresses(config: CompressionConfig) -> bool:
    """Whether the architecture has slots."""
    return config.architecture in HEADS
