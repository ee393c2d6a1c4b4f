"""Typed settings: how a dataclass declares them, and how it is read from plain values.

A group of settings is a frozen dataclass whose fields are made by `setting`; the groups are in
`gistjax.config`. What 0.1 called otherwise is translated here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from gistjax.errors import ConfigError, did_you_mean


def setting(default: Any, about: str, **rules: Any) -> Any:
    """Return a dataclass field with its help text and the rules that `gistjax.validation` checks.

    Args:
        default: the value, or a function that makes it.
        about: one line of help.
        rules: `choices`, `or_path` (a dotted one, beside the choices), `least` (≤ value), `above`
            (< value), `below` (> value), `most` (≥ value), `special` (one value that is allowed
            besides), `ascending` (of a tuple of positives).
    """
    metadata = {"about": about, **rules}
    if default is dict:  # which has no hash
        return dataclasses.field(default_factory=dict, hash=False, metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield (dotted key, value, metadata of `setting`) of every key, those of groups last."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, field.metadata


def from_dict(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a group of settings from plain values, with defaults for what they leave out.

    Args:
        prefix: of the group's keys in messages: `lora.`.

    Raises:
        ConfigError: naming an unknown key and the nearest known one, or a wrong type.
    """
    defaults = cls()
    known = {f.name for f in dataclasses.fields(cls)}
    arguments = {}
    for name in values:
        if name not in known:
            raise ConfigError(f"config has no key {prefix + name!r}{did_you_mean(name, known)}")
        arguments[name] = _cast(getattr(defaults, name), values[name], prefix + name)
    return cls(**arguments)


def _cast(default: Any, value: Any, name: str) -> Any:
    """Return the value in its default's type: lists become tuples, whole numbers floats."""
    kind = type(default)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping | ml_collections.ConfigDict):
        return from_dict(kind, value, name + ".")
    if kind is dict and isinstance(value, Mapping | ml_collections.ConfigDict):
        return {inner: _cast(0.0, value[inner], f"{name}.{inner}") for inner in value}
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(_cast(default[0] if default else 0.0, item, name) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"config key {name!r} takes {_kind(default)}, not {value!r}.")
    return value.strip() if isinstance(value, str) else value


def _kind(default: Any) -> str:
    if isinstance(default, tuple):
        return f"a tuple of {type((*default, 0.0)[0]).__name__}, such as {default or (2.0, 4.0)!r}"
    return f"a {type(default).__name__}, such as {default!r}"


PARAMETERS_OF_0_1 = "compressor/head/", "compressor/architecture/"
"""Beginning of the parameters that have another name since 0.1, and what it is now."""

_DROPPED = {
    "teacher_tokens": 16,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "evaluation.slot_contexts": 2,
}
"""Keys of 0.1 that are gone, with the value that is now built in."""


def from_0_1(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of a file of 0.1 as they are called now, without the keys that are gone.

    Raises:
        ConfigError: if one of them had another value than what is built in now.
    """
    if values.get("slot_start") == "head":  # in a file, a sweep or on the command line
        values = {**dict(values.items()), "slot_start": "architecture"}
    if not isinstance(values, dict):
        return values
    values = {key: dict(v) if isinstance(v, dict) else v for key, v in values.items()}
    for name, built_in in _DROPPED.items():
        group, _, leaf = name.rpartition(".")
        holder = values.get(group, {}) if group else values
        if isinstance(holder, dict) and holder.pop(leaf, built_in) != built_in:
            raise ConfigError(
                f"{name} is a key of gistjax 0.1; since 0.2 it is always {built_in}: "
                "go on with `pip install gistjax==0.1.0`, or leave the key out."
            )
    return values
