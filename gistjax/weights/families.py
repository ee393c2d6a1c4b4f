"""Families of models: what reads the `config.json` of each, by its `model_type`.

All are Llamas but for what a field of `LlamaConfig` tells. A key that transformers would fill in
with a number of its own, where a file lacks it, has to be there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig


def read_mistral(hf: Mapping[str, Any]) -> LlamaConfig:
    """Return the sizes of a Mistral whose positions look at all before them.

    Raises:
        WeightsError: if a window hides those far back; else as `LlamaConfig.from_hugging_face`.
    """
    if "sliding_window" not in hf:  # transformers takes 4096
        raise WeightsError("its config lacks sliding_window, which may be null: fetch it again.")
    return _as_llama(hf, "num_key_value_heads")


def read_qwen2(hf: Mapping[str, Any]) -> LlamaConfig:
    """Return the sizes of a Qwen2 or Qwen2.5: a Llama with biases on queries, keys and values.

    Raises:
        WeightsError: as `read_mistral`.
    """
    config = _as_llama(_without_idle_window(hf), "num_key_value_heads")
    return dataclasses.replace(config, qkv_biases=True)


def read_qwen3(hf: Mapping[str, Any]) -> LlamaConfig:
    """Return the sizes of a Qwen3: a Llama that norms each head's query and key.

    Raises:
        WeightsError: as `read_mistral`.
    """
    config = _as_llama(_without_idle_window(hf), "num_key_value_heads", "head_dim")
    return dataclasses.replace(config, qk_norms=True)


def read_smollm3(hf: Mapping[str, Any]) -> LlamaConfig:
    """Return the sizes of a SmolLM3: a Llama, some of whose layers have no rotary positions.

    In `no_rope_layers` a layer that has them is, in spite of the name, a 1. Without that list every
    fourth layer has none, in transformers as in llama.cpp.

    Raises:
        WeightsError: if the layers are given otherwise; else as `read_mistral`.
    """
    own = {"no_rope_layers", "no_rope_layer_interval"}
    plain = {key: value for key, value in _without_idle_window(hf).items() if key not in own}
    if hf.get("tie_word_embeddings") is None:  # transformers leaves out what is its default
        plain["tie_word_embeddings"] = True
    groups = [group for group in (hf, hf.get("rope_parameters")) if isinstance(group, Mapping)]
    if all(group.get("rope_theta") is None for group in groups):
        raise WeightsError("cannot load this base: its config lacks rope_theta.")
    config = _as_llama(plain, "num_key_value_heads")
    rotates = hf.get("no_rope_layers")
    if rotates is None:
        if hf.get("no_rope_layer_interval", 4) != 4:
            raise WeightsError("it has a no_rope_layer_interval other than 4, and no list of them.")
        rotates = [int(layer % 4 != 3) for layer in range(config.n_layers)]
    if not isinstance(rotates, list) or len(rotates) < config.n_layers:
        raise WeightsError(f"no_rope_layers is no list of {config.n_layers} layers: {rotates!r}.")
    if any(type(rotated) not in (int, bool) or rotated not in (0, 1) for rotated in rotates):
        raise WeightsError(f"no_rope_layers has other numbers than 0 and 1: {rotates!r}.")
    unrotated = (layer for layer in range(config.n_layers) if not rotates[layer])
    return dataclasses.replace(config, unrotated_layers=tuple(unrotated))


FAMILIES: dict[str, Callable[[Mapping[str, Any]], LlamaConfig]] = {
    "llama": LlamaConfig.from_hugging_face,
    "mistral": read_mistral,
    "qwen2": read_qwen2,
    "qwen3": read_qwen3,
    "smollm3": read_smollm3,
}
"""The `model_type` of a `config.json`, and what reads it. A family that is not here is refused."""


def _as_llama(hf: Mapping[str, Any], *required: str) -> LlamaConfig:
    if missing := [key for key in required if hf.get(key) is None]:
        raise WeightsError(f"cannot load this base: its config lacks {', '.join(missing)}.")
    return LlamaConfig.from_hugging_face({**hf, "model_type": "llama"})


def _without_idle_window(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out a Qwen's window if it is unused, and from which layer on it would be in use."""
    idle = {"max_window_layers"} | (set() if hf.get("use_sliding_window") else {"sliding_window"})
    return {key: value for key, value in hf.items() if key not in idle}
