"""Out of memory on a device, as an error that says what is needed, what there is, and what to change."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError, DeviceMemoryError
from gistjax.validation import validate

GIB = 2**30
SHOWN = 3
"""Ways out that are named."""

Doing = Literal["training", "a forward pass"]


@contextmanager
def explained(config: CompressionConfig, doing: Doing) -> Iterator[None]:
    """Turns a lack of memory, of the device or of the host, into an error that tells the way out.

    Raises:
        DeviceMemoryError: if memory runs out in the `with` block.
    """
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        explain = _training if doing == "training" else _forward
        raise DeviceMemoryError(
            f"{doing} ran out of memory. {explain(config, str(error))}"
        ) from error


def _training(config: CompressionConfig, error: str) -> str:
    parts = _estimate(config)
    total = parts.pop("total")
    listed = ", ".join(f"{name} {value:,.2f}" for name, value in parts.items())
    ways = []
    for settings, about in _valid(config, _training_flags(config)):
        then = _estimate(_with(config, settings))["total"]
        if "mesh.fsdp" in settings:
            ways.append((0.0, settings, about))
        elif then < 0.99 * total:
            ways.append((then, settings, f"{about}: about {then:,.2f} GiB"))
    ways = sorted(ways, key=lambda way: way[0])[:SHOWN]
    return (
        f"A step needs about {total:,.2f} GiB on each device ({listed}), and {_there_is()}; change one of\n"
        + "\n".join(_line(settings, about) for _, settings, about in ways)
    )


def _forward(config: CompressionConfig, error: str) -> str:
    asked = re.search(r"allocat\w+ ([\d.]+ ?\w+)", error)
    ways = list(_valid(config, _forward_flags(config)))[:SHOWN]
    return (
        f"It asked for {asked[1] if asked else 'more'} beside what was in use, and {_there_is()}; change one of\n"
        + "\n".join(_line(*way) for way in ways)
    )


def _estimate(config: CompressionConfig) -> dict[str, float]:
    from gistjax.estimate.planning import memory_estimate
    from gistjax.weights.registry import resolve

    return memory_estimate(config, resolve(config.model, offline=True).config)


def _there_is() -> str:
    from gistjax.runtime.devices import host_memory, memory_limit

    if limit := memory_limit():
        return (
            f"JAX has {limit / GIB:,.2f} GiB (XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the "
            "environment gives it nearly all of a GPU)"
        )
    return f"this machine has {host_memory() / GIB:,.2f} GiB"


Way = tuple[dict[str, Any], str]
"""Settings that lower what is needed, and what they do."""


def _line(settings: dict[str, Any], about: str) -> str:
    words = " ".join(f"--config.{key}={_word(value)}" for key, value in settings.items())
    return f"    {words}  ({about})"


def _valid(config: CompressionConfig, ways: Iterator[Way]) -> Iterator[Way]:
    """Without those that contradict the rest, such as fewer context tokens than slots."""
    for settings, about in ways:
        try:
            validate(_with(config, settings))
        except ConfigError:
            continue
        yield settings, about


def _training_flags(config: CompressionConfig) -> Iterator[Way]:
    import jax

    if jax.device_count() > 1 and config.mesh.fsdp == 1:
        yield {"mesh.fsdp": jax.device_count()}, "parameters split over the devices"
    if config.batch_size > 1:
        half = config.batch_size // 2
        settings = {"batch_size": half, "accumulation": config.accumulation * 2}
        yield settings, "the same training in smaller steps"
    if not config.model.remat:
        yield {"model.remat": True}, "activations computed twice"
    if config.model.dtype == "float32":
        yield {"model.dtype": "bfloat16"}, "half the precision"
    yield _shorter(config), "shorter contexts"
    if config.lora.rank > 1:
        yield {"lora.rank": config.lora.rank // 2}, "smaller adapters"
    if config.encoder.kind == "lora":
        yield {"encoder.kind": "embeddings"}, "no encoder beside the embeddings"
    yield {"target_length": config.target_length // 2}, "fewer slots"


def _forward_flags(config: CompressionConfig) -> Iterator[Way]:
    evaluation = config.evaluation
    if evaluation.batch_size > 1:
        yield {"evaluation.batch_size": evaluation.batch_size // 2}, "the same in smaller batches"
    yield _shorter(config), "shorter contexts"
    half = evaluation.max_answer_tokens // 2
    yield {"evaluation.max_answer_tokens": half}, "shorter answers"
    if evaluation.baseline:
        yield {"evaluation.baseline": False}, "no untuned baseline, which reads the whole context"


def _shorter(config: CompressionConfig) -> dict[str, Any]:
    tokens = config.data.context_tokens // 2
    buckets = [bucket for bucket in config.data.context_buckets if bucket < tokens]
    return {"data.context_tokens": tokens, "data.context_buckets": (*buckets, tokens)}


def _with(config: CompressionConfig, settings: dict[str, Any]) -> CompressionConfig:
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        if group:
            value = dataclasses.replace(getattr(config, group), **{name: value})
        config = config.replace(**{group or name: value})
    return config


def _word(value: Any) -> str:
    return f'"({",".join(map(str, value))},)"' if isinstance(value, tuple) else str(value)
