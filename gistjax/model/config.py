"""A Llama's sizes and constants, read from Hugging Face's `config.json` or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gistjax.errors import WeightsError


@dataclass(frozen=True)
class RopeScaling:
    """The llama3 frequency scaling (arXiv:2407.21783; `rope_type: llama3` of Hugging Face)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a base model."""

    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-5
    tie_embeddings: bool = False
    max_positions: int = 2048

    @classmethod
    def from_hugging_face(cls, hf: Mapping[str, Any]) -> LlamaConfig:
        """Read a Hugging Face `config.json`.

        Raises:
            WeightsError: where the file asks for something that this model does not do.
        """
        _refuse_malformed(hf)
        _refuse_unsupported(hf)
        rope = _rope(hf)
        n_heads = hf["num_attention_heads"]
        return cls(
            vocab_size=hf["vocab_size"],
            d_model=hf["hidden_size"],
            d_ff=hf["intermediate_size"],
            n_layers=hf["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=hf.get("num_key_value_heads") or n_heads,
            head_dim=hf.get("head_dim") or hf["hidden_size"] // n_heads,
            rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0),
            rope_scaling=_rope_scaling(rope),
            rms_eps=float(hf.get("rms_norm_eps") or 1e-6),
            tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
            max_positions=hf.get("max_position_embeddings") or 2048,
        )


def _rope(hf: Mapping[str, Any]) -> dict[str, Any]:
    """All keys of RoPE, which transformers 5 groups and earlier files spread over two."""
    return {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    if rope.get("rope_type", rope.get("type", "default")) != "llama3":
        return None
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_positions=int(rope["original_max_position_embeddings"]),
    )


REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
LARGEST = {"num_hidden_layers": 1024, "num_attention_heads": 4096, "num_key_value_heads": 4096}
"""Beyond these, and 2^24 for other sizes, a file is damaged or hostile: no model is larger."""


def _refuse_malformed(hf: Mapping[str, Any]) -> None:
    """Refuse values of the wrong type, and sizes that are none.

    Raises:
        WeightsError: naming the key.
    """
    for key in (*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        size = hf.get(key)
        if size is not None and not (type(size) is int and 1 <= size <= LARGEST.get(key, 2**24)):
            raise WeightsError(f"{key} is {size!r}: fetch the file again.")
    for key in ("rope_scaling", "rope_parameters"):
        rope = hf.get(key) or {}
        numbers = ("rope_theta", "partial_rotary_factor", *ROPE_NUMBERS)
        if not isinstance(rope, Mapping) or not all(
            _is_number(rope.get(name, 1)) for name in numbers
        ):
            raise WeightsError(f"{key} is {rope!r}: fetch the file again.")
        if rope.get("rope_type", rope.get("type")) == "llama3" and not rope.keys() >= {
            *ROPE_NUMBERS
        }:
            raise WeightsError(
                f"{key} lacks some of {', '.join(ROPE_NUMBERS)}: fetch the file again."
            )
    for key in ("rope_theta", "rms_norm_eps"):
        if not _is_number(hf.get(key) or 1):
            raise WeightsError(f"{key} is {hf[key]!r}: fetch the file again.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    """Refuse what this model does not compute.

    Raises:
        WeightsError: with the reason.
    """
    rope = _rope(hf)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    missing = [key for key in REQUIRED if not isinstance(hf.get(key), int)]
    heads, kv_heads = hf.get("num_attention_heads", 1), hf.get("num_key_value_heads")
    reasons = {
        f"the model type is {hf.get('model_type')!r}": hf.get("model_type", "llama") != "llama",
        f"its config lacks {', '.join(missing)}": bool(missing),
        f"its activation is {hf.get('hidden_act')!r}": hf.get("hidden_act", "silu") != "silu",
        "its attention projections have biases": bool(hf.get("attention_bias")),
        "its feed-forward projections have biases": bool(hf.get("mlp_bias")),
        f"its RoPE type is {rope_type!r}": rope_type not in ("default", "llama3"),
        "its RoPE turns only a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "its query heads do not divide by its key/value heads": bool(kv_heads)
        and heads % kv_heads != 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise WeightsError(
                f"cannot load this base: {reason}. gistjax runs Llama 2, Llama 3.x and SmolLM2 "
                "(silu, no biases, RoPE 'default' or 'llama3')."
            )
