"""Settings with which a configuration takes less device memory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.estimate.memory import GIB, memory_estimate
from gistjax.model.config import LlamaConfig
from gistjax.runtime.devices import host_memory, memory_limit
from gistjax.validation import validate
from gistjax.weights.registry import resolve

SHOWN = 3
"""Number of ways out that an error names."""


@dataclasses.dataclass(frozen=True)
class Way:
    """Settings that lower the memory that is needed, and what they do."""

    settings: dict[str, Any]
    about: str

    @property
    def flags(self) -> str:
        """The settings as words of a command line."""
        return " ".join(f"--config.{key}={_word(value)}" for key, value in self.settings.items())

    def apply(self, config: CompressionConfig) -> CompressionConfig:
        """Return the configuration with these settings."""
        for key, value in self.settings.items():
            group, _, name = key.rpartition(".")
            if group:
                value = dataclasses.replace(getattr(config, group), **{name: value})
            config = config.replace(**{group or name: value})
        return config


def steps_that_fit(
    config: CompressionConfig, base: LlamaConfig, prefix: int, limit_gib: float
) -> tuple[Way, float] | None:
    """Find the largest micro-batch that fits, with as many rows a step as before.

    Layers' activations are computed twice only if not even single rows fit otherwise.

    Returns:
        The way, and the GiB that training takes then; None if there is none.
    """
    sizes = [n for n in range(config.batch_size - 1, 0, -1) if config.batch_size % n == 0]
    small = [
        Way(
            {"batch_size": n, "accumulation": config.accumulation * config.batch_size // n},
            "the same training in smaller steps",
        )
        for n in sizes
    ]
    again = [
        Way({**way.settings, "model.remat": True}, f"{way.about}, activations computed twice")
        for way in ([] if config.model.remat else [Way({}, "the same training"), *small])
    ]
    for way in (*small, *again):
        total = memory_estimate(way.apply(config), base, prefix)["total"]
        if total <= limit_gib:
            return way, total
    return None


def explain_training(config: CompressionConfig) -> str:
    """Say what a train step needs, what there is, and which settings lower it."""
    base = resolve(config.model, offline=True).config
    parts = memory_estimate(config, base)
    total = parts.pop("total")
    listed = ", ".join(f"{name} {value:,.2f}" for name, value in parts.items())
    ways = []
    for way in training_ways(config):
        then = memory_estimate(way.apply(config), base)["total"]
        if "mesh.fsdp" in way.settings:
            ways.append((0.0, f"    {way.flags}  ({way.about})"))
        elif then < 0.99 * total:
            ways.append((then, f"    {way.flags}  ({way.about}: about {then:,.2f} GiB)"))
    lines = [line for _, line in sorted(ways, key=lambda way: way[0])[:SHOWN]]
    return (
        f"A step needs about {total:,.2f} GiB on each device ({listed}), and {_there_is()}; "
        "change one of\n" + "\n".join(lines)
    )


def explain_forward(config: CompressionConfig, error: str) -> str:
    """Say what a forward pass asked for, what there is, and which settings lower it.

    Args:
        error: JAX's message.
    """
    asked = re.search(r"allocat\w+ ([\d.]+ ?\w+)", error)
    lines = [f"    {way.flags}  ({way.about})" for way in forward_ways(config)]
    return (
        f"It asked for {asked[1] if asked else 'more'} beside what was in use, and {_there_is()}; "
        "change one of\n" + "\n".join(lines[:SHOWN])
    )


def _there_is() -> str:
    if limit := memory_limit():
        return (
            f"JAX has {limit / GIB:,.2f} GiB (XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the "
            "environment gives it nearly all of a GPU)"
        )
    return f"this machine has {host_memory() / GIB:,.2f} GiB"


def training_ways(config: CompressionConfig) -> Iterator[Way]:
    """Yield what makes a train step smaller; all of it is valid with the rest."""
    return _valid(config, _training_ways(config))


def forward_ways(config: CompressionConfig) -> Iterator[Way]:
    """Yield what makes answering questions smaller; all of it is valid with the rest."""
    return _valid(config, _forward_ways(config))


def _valid(config: CompressionConfig, ways: Iterator[Way]) -> Iterator[Way]:
    """Leave out what contradicts the rest, such as fewer context tokens than slots."""
    for way in ways:
        try:
            validate(way.apply(config))
        except ConfigError:
            continue
        yield way


def _training_ways(config: CompressionConfig) -> Iterator[Way]:
    if jax.device_count() > 1 and config.mesh.fsdp == 1:
        yield Way({"mesh.fsdp": jax.device_count()}, "parameters split over the devices")
    if config.batch_size > 1:
        half = config.batch_size // 2
        settings = {"batch_size": half, "accumulation": config.accumulation * 2}
        yield Way(settings, "the same training in smaller steps")
    if not config.model.remat:
        yield Way({"model.remat": True}, "activations computed twice")
    if config.model.dtype == "float32":
        yield Way({"model.dtype": "bfloat16"}, "half the precision")
    yield _shorter(config)
    if config.lora.rank > 1:
        yield Way({"lora.rank": config.lora.rank // 2}, "smaller adapters")
    if config.encoder.kind == "lora":
        yield Way({"encoder.kind": "embeddings"}, "no encoder beside the embeddings")
    yield Way({"target_length": config.target_length // 2}, "fewer slots")


def _forward_ways(config: CompressionConfig) -> Iterator[Way]:
    evaluation = config.evaluation
    if evaluation.batch_size > 1:
        half = evaluation.batch_size // 2
        yield Way({"evaluation.batch_size": half}, "the same in smaller batches")
    yield _shorter(config)
    half = evaluation.max_answer_tokens // 2
    yield Way({"evaluation.max_answer_tokens": half}, "shorter answers")
    if evaluation.baseline:
        about = "no untuned baseline, which reads the whole context"
        yield Way({"evaluation.baseline": False}, about)


def _shorter(config: CompressionConfig) -> Way:
    tokens = config.data.context_tokens // 2
    buckets = [bucket for bucket in config.data.context_buckets if bucket < tokens]
    settings = {"data.context_tokens": tokens, "data.context_buckets": (*buckets, tokens)}
    return Way(settings, "shorter contexts")


def _word(value: Any) -> str:
    return f'"({",".join(map(str, value))},)"' if isinstance(value, tuple) else str(value)
