"""The pretrained base of a run: loaded onto the mesh, checked, and built into a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from gistjax.compress.architectures import check_architecture
from gistjax.compress.budget import Budget
from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.learned import repeats
from gistjax.compress.parameters import import_trainable, split_model, start_from
from gistjax.compress.profile import read_profile
from gistjax.config import SELECT, CompressionConfig
from gistjax.data.encoding import check_buckets
from gistjax.data.prompts import Prompt
from gistjax.data.tasks import each_task, load_task, written_tokens
from gistjax.errors import ConfigError, WeightsError
from gistjax.experiment.meaning import asked, changed_in_use, check_meaning
from gistjax.experiment.run_dir import RunDir
from gistjax.model.llama import Llama
from gistjax.runtime.devices import device_name, start_jax
from gistjax.runtime.sharding import make_mesh, put, replicated, shardings_of
from gistjax.validation import validate
from gistjax.weights.end_tokens import find_end_ids
from gistjax.weights.registry import (
    KNOWN,
    Source,
    base_hash,
    load_base,
    resolve,
)
from gistjax.weights.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPEAT = "Repeat the context word for word."
"""What a decoder is asked whose attention tells which entries it needs (KVzip)."""


@dataclass(frozen=True)
class PretrainedBase:
    """Devices, base weights, tokenizer and prompt: what does not depend on the architecture."""

    mesh: Mesh
    source: Source
    base: Llama
    tokenizer: PreTrainedTokenizerFast
    prompt: Prompt

    @cached_property
    def base_sha256(self) -> str:
        """Hash of the base's names and bytes (`base_hash`)."""
        return base_hash(self.base)

    def about(self) -> dict[str, Any]:
        """Return what `config.json` of a run says of its base and devices."""
        return {
            "base_weights": self.source.describe(),
            "base_sha256": self.base_sha256,
            "prompt_sha256": self.prompt.sha256,
            "device": device_name(),
            "mesh": dict(self.mesh.shape),
        }

    def check_run(self, run: RunDir) -> None:
        """Check that the run in a directory, if there is one, has this base and prompt.

        Raises:
            CheckpointError: as `RunDir.check_base` does.
        """
        known = KNOWN.get(self.source.name)
        prompt = self.prompt
        if run.config_file.exists():  # it may be asked what another task asks
            prompt = load_task(run.config().data.main_task).prompt(self.tokenizer)
        run.check_base(prompt.sha256, self.base_sha256, known.install if known else "")


def find_prompt(config: CompressionConfig, trains: bool = False) -> tuple[Source, Prompt]:
    """Return the origin of the base and the prompt of its tokenizer; no weights are touched.

    Raises:
        ConfigError: if they cannot take what the config asks for (`check_fit`).
        WeightsError: if base or tokenizer cannot be found or fetched, or do not belong together.
    """
    source = resolve(config.model)
    tokenizer = load_tokenizer(source)
    if len(tokenizer) > source.config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {len(tokenizer)} tokens, but {config.model.known_as} embeds "
            f"{source.config.vocab_size}: it belongs to another model. Put the model's own "
            "tokenizer files beside its weights."
        )
    other_end_ids = find_end_ids(source)
    prompts = {name: load_task(name).prompt(tokenizer) for name in config.data.task_names}
    for prompt in prompts.values():
        check_fit(config, source, prompt, trains)
    return source, dataclasses.replace(prompts[config.data.main_task], other_end_ids=other_end_ids)


def check_fit(
    config: CompressionConfig, source: Source, prompt: Prompt, trains: bool = False
) -> None:
    """Check that base and prompt can take what the configuration asks for.

    Args:
        trains: in training, where KVzip may teach a learned scorer.

    Raises:
        ConfigError: if prompt and buckets, or base and longest sequence or encoder, do not fit.
    """
    check_buckets(prompt, config.data)
    base = source.config
    check_architecture(config, base)
    if config.encoder.layers > base.n_layers:
        raise ConfigError(
            f"encoder.layers={config.encoder.layers}, but the base has {base.n_layers} layers: "
            "lower it, or set it to -1 for all."
        )
    tokens = max(config.data.question_buckets) + written_tokens(config)
    longest = len(prompt.prefix_ids) + config.data.context_tokens + tokens
    if repeats(config, trains):
        again = len(repeat_ids(prompt)) + 2 * config.data.context_tokens
        if len(prompt.prefix_ids) + again > base.max_positions:
            raise ConfigError(
                f"the base reads {base.max_positions} tokens, but select.scorer="
                f"{config.select.scorer!r} reads a context twice, prefix and question with it up "
                f"to {len(prompt.prefix_ids) + again}: lower --config.data.context_tokens, or give "
                "another scorer."
            )
    if longest > base.max_positions:
        raise ConfigError(
            f"the base reads {base.max_positions} tokens, but prefix, context and question take "
            f"up to {longest}: lower --config.data.context_tokens."
        )


def repeat_ids(prompt: Prompt) -> tuple[int, ...]:
    """Return the tokens between a context and its repetition."""
    return tuple(prompt.encode_question(REPEAT).tolist())


def check_profile(config: CompressionConfig, base_sha256: str = "") -> np.ndarray | None:
    """Return the parts of the profile that a configuration names, `[L, K, R]`; None without one.

    Args:
        base_sha256: hash of the base, where it is known before its weights are loaded.

    Raises:
        CheckpointError, ConfigError: as `read_profile` does.
    """
    if config.select.spread != "profile":
        return None
    sizes = None
    if config.model.path or "/" not in config.model.name:
        sizes = resolve(config.model, offline=True).config
    return read_profile(config.select.profile, sizes, base_sha256)


def load_pretrained(
    config: CompressionConfig,
    mesh: Mesh | None = None,
    found: tuple[Source, Prompt] | None = None,
) -> PretrainedBase:
    """Load the base onto the mesh.

    Args:
        mesh: of the run; by default JAX is started and the config's mesh made.
        found: the result of `find_prompt`, where it was called before.

    Raises:
        ConfigError: if mesh and devices do not fit, or as `find_prompt` says.
        WeightsError: if the weights cannot be found or fetched, or as `find_prompt` says.
    """
    if mesh is None:
        start_jax(config)
        mesh = make_mesh(config.mesh)
    source, prompt = found or find_prompt(config)
    base = load_base(source, config.model, mesh)
    return PretrainedBase(mesh, source, base, prompt.tokenizer, prompt)


def build_model(
    config: CompressionConfig, pretrained: PretrainedBase, seeded: bool = True
) -> CompressedLM:
    """Build the model of one ablation on a base (`build_on`)."""
    of = pretrained.base_sha256 if config.select.profile and seeded else ""
    model = build_on(pretrained.base, pretrained.mesh, config, seeded, of)
    if model.selector is not None:
        model.selector.repeat_ids = repeat_ids(pretrained.prompt)
    return model


def build_on(
    base: Llama,
    mesh: Mesh,
    config: CompressionConfig,
    seeded: bool = True,
    base_sha256: str = "",
) -> CompressedLM:
    """Build the model of one ablation, its trainable leaves seeded and on the mesh.

    Args:
        seeded: False leaves shapes with shardings in place of the trainable leaves, for those of a
            file: making them takes dozens of small programs.
        base_sha256: hash of the base, where it is known, which a profile must be of.
    """

    def make() -> CompressedLM:
        return CompressedLM(base, config, jax.random.key(config.seed))

    model = make() if seeded else nnx.eval_shape(make)
    model.base = base  # not as shapes
    if model.selector is not None and model.selector.profile is not None and seeded:
        parts = read_profile(config.select.profile, base.config, base_sha256)
        model.selector.profile.set_value(jnp.asarray(parts))
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


def in_use(config: CompressionConfig, trained: CompressionConfig, base: str) -> CompressionConfig:
    """Return the whole configuration that a finished run is used with, of one task.

    Args:
        base: folder or GGUF file of the base; empty where it is found as in the run.

    Raises:
        ConfigError: as `check_meaning` and `validate` do, or if it was not trained for the ratio.
    """
    config = asked(config, trained)
    if base:
        config = config.replace(model=dataclasses.replace(config.model, path=base))
    check_meaning(config, trained)
    validate(config)
    config = config.replace(data=each_task(config.data)[config.data.main_task])
    given = trained.replace(select=config.select) if trained.compresses else config
    problem = Budget.of(given).ratio_problem(config.ratio)
    if problem and config.ratio != trained.ratio:
        raise ConfigError(problem)
    return config


def load_trained(
    run: RunDir, config: CompressionConfig, pretrained: PretrainedBase | None = None
) -> tuple[PretrainedBase, tuple[Any, Any, Any]]:
    """Load a finished run: its base, and its model as structure, trained leaves, frozen leaves.

    Args:
        config: the run's own, or one that means the same (`check_meaning`).
        pretrained: the base, where it is loaded and checked already.

    Raises:
        GistjaxError: if the run is not finished, the base cannot be found or fetched or is another
            one, or the compressor does not fit.
    """
    exported = run.finished(run.exported)
    trained = run.config()
    begins = config.selects and not trained.selects  # a full context of which entries are kept
    if config.select.spread == "profile" and changed_in_use(config, trained):
        begins = True  # the profile is another
    if begins:
        check_profile(config, run.about().get("base_sha256", ""))
    if pretrained is None:
        pretrained = load_pretrained(config)
        pretrained.check_run(run)
    graphdef, shapes, frozen = split_model(build_model(config, pretrained, seeded=False))
    if begins:
        leaves = start_from(
            exported, shapes, SELECT, lambda: split_model(build_model(config, pretrained))[1]
        )
        return pretrained, (graphdef, leaves, frozen)
    return pretrained, (graphdef, import_trainable(exported, shapes), frozen)


def untuned_closed_book(config: CompressionConfig) -> CompressionConfig:
    """Return the lower control that was not trained: the base itself, without a context."""
    return untuned_full_context(config).replace(architecture="closed_book")


def untuned_full_context(config: CompressionConfig) -> CompressionConfig:
    """Return the upper control that was not trained: the base itself, with the whole context."""
    lora = type(config.lora)(rank=0)
    return config.replace(
        architecture="none",
        slot_form="soft_tokens",
        lora=lora,
        select=type(config.select)(),
    )
