"""What a finished run may be asked with: what leaves its weights the meaning that they had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gistjax.config import SLOT_KEYS, CompressionConfig
from gistjax.errors import ConfigError
from gistjax.settings import walk
from gistjax.validation import check_choices

MEANING = (
    "architecture",
    "slot_form",
    "slot_place",
    "slot_start",
    "slot_positions",
    "connector",
    "lora",
    "encoder",
    "select",
)
"""Keys without which trained weights mean something else."""

SPREAD = ("select.spread", "select.profile")
"""Keys among them that may change: how a budget of entries is spread is no weight."""
WEIGHTLESS = tuple(
    f"select.{name}" for name in ("bytes", "bits", "joined", "warmup", "temperature")
)
"""Keys among them that may change as `ratio` may, or that training alone reads."""


def is_cut(config: CompressionConfig, trained: CompressionConfig) -> bool:
    """Whether entries are kept of the cache of a model that was trained to read whole contexts."""
    return config.selects and trained.architecture == "none"


def asked(config: CompressionConfig, trained: CompressionConfig) -> CompressionConfig:
    """Return the configuration that a finished run is asked with.

    Another `data.task` than in its training takes the place of a mixture that it was trained on.
    Keys of slots, ratios and encoder, which a full context has and does not read, are not those of
    its cut. A profile goes with its spread.
    """
    select = config.select
    if select.spread != "profile" and select.profile == trained.select.profile:
        config = config.replace(select=replace(select, profile=""))
    if is_cut(config, trained):
        default = CompressionConfig()
        unread = (*SLOT_KEYS, "ratios", "encoder")
        kept = {key for key in unread if getattr(config, key) != getattr(trained, key)}
        config = config.replace(**{k: getattr(default, k) for k in unread if k not in kept})
    if config.data.task == trained.data.task or config.data.tasks != trained.data.tasks:
        return config
    return config.replace(data=replace(config.data, tasks={}))


def check_meaning(config: CompressionConfig, trained: CompressionConfig) -> None:
    """Refuse a configuration in which trained weights would mean something else.

    Raises:
        ConfigError: naming the keys that differ from those of the training, and of a value that
            there is not the nearest that there is.
    """
    changed = _changed(config, trained)
    check_choices(config, changed)
    keys: Sequence[str] = MEANING
    if is_cut(config, trained):  # any scorer may cut its cache
        keys = ("lora",)
        if config.learns_scores:
            raise ConfigError(
                f"select.scorer={config.select.scorer!r} is trained, and this full-context model "
                "has none: train with --config.init_from set to it, or give another scorer."
            )
        if config.encoder.kind == "lora" or config.encoder.bidirectional:
            raise ConfigError(
                "encoder.kind='lora' would read contexts with an adapter that this full-context "
                "model does not have, and it was trained to read them causally: set "
                "--config.encoder.kind=embeddings and --config.encoder.bidirectional=False."
            )
    changed = [key for key in changed if key.partition(".")[0] in keys]
    whole = trained.architecture == config.architecture == "none"
    if whole and any(key.startswith("select.") for key in changed):
        raise ConfigError(
            f"{', '.join(changed)}: only architecture='select' keeps entries of the cache: add "
            "--config.architecture=select, or leave that --config out."
        )
    if changed := [key for key in changed if key not in (*SPREAD, *WEIGHTLESS)]:
        raise ConfigError(
            f"{', '.join(changed)}: this model was trained with another value, so it would answer "
            "at random: leave that --config out, or train a model with it."
        )


def changed_in_use(config: CompressionConfig, trained: CompressionConfig) -> list[str]:
    """Return the keys of what is kept that are asked with another value than was trained."""
    return [key for key in _changed(config, trained) if key in ("architecture", *SPREAD)]


def _changed(config: CompressionConfig, trained: CompressionConfig) -> list[str]:
    """Return the dotted keys that differ."""
    theirs = {key: value for key, value, _ in walk(trained)}
    return [key for key, value, _ in walk(config) if value != theirs[key]]
