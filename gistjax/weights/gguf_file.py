"""Weights and config of a base in a GGUF file.

Of a Llama or SmolLM3, GGUF interleaves the two halves of each query and key head, for another form
of RoPE; `GgufReader.tensor` undoes it. Qwen's heads are as in Hugging Face files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig, RopeScaling
from gistjax.model.rope import rope_frequencies, scale_frequencies
from gistjax.weights.families import FAMILIES
from gistjax.weights.gguf_header import read_header
from gistjax.weights.gguf_metadata import ARCHITECTURE, check_metadata, check_sizes, read_sizes
from gistjax.weights.loading import check_stored, expected_shapes

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face name to GGUF name."""

INTERLEAVED = ("llama", "smollm3")
"""Architectures whose heads are."""

LLAMA_3_SCALINGS = (RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192))

ROPE_DIVISORS = "rope_freqs.weight"
LLAMA_3 = {"vocab_size": 128_256, "rope_theta": 500_000.0}

JOINED_ROWS = 8
"""Rows dequantised as one: the package takes 16 at a time, too little work for a call of numpy."""


def open_gguf(path: Path) -> GgufReader:
    """Return a reader of the file as it is now; its header is parsed once until the file changes.

    Raises:
        WeightsError: see `GgufReader`.
    """
    changed = path.stat().st_mtime_ns if path.exists() else 0
    return _open(path, changed)


@functools.lru_cache(maxsize=1)
def _open(path: Path, changed: int) -> GgufReader:
    return GgufReader(path)


class GgufReader:
    """Weights and config of one GGUF file, and its `metadata` by name.

    Raises:
        WeightsError: if the file is missing, damaged, or of another family; if it has metadata or a
            tensor that gistjax does not know, or lacks a tensor.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.metadata, self._tensors = read_header(path)
        except FileNotFoundError as error:
            raise WeightsError(f"there is no file {path}.") from error
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        except Exception as error:  # a damaged header can make parsing stumble in many ways
            raise WeightsError(
                f"{path} is not a whole GGUF file ({type(error).__name__}: {error}): "
                "fetch it again."
            ) from error
        try:
            check_metadata(self.metadata)
            self.config = self._read_config()
            check_sizes(self.metadata, self.config)
            self._check_tensors()
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error

    def entry(self, key: str) -> Any:
        """Return a value of the metadata.

        Raises:
            WeightsError: if it is missing.
        """
        if key not in self.metadata:
            raise WeightsError(f"{self.path}: it lacks the entry {key!r}.")
        return self.metadata[key]

    @property
    def _is_llama(self) -> bool:
        return bool(self.metadata[ARCHITECTURE] == "llama")

    def _read_config(self) -> LlamaConfig:
        hf = read_sizes(self.metadata)
        hf["tie_word_embeddings"] = "output.weight" not in self._tensors
        config = FAMILIES[hf["model_type"]](hf)
        return dataclasses.replace(config, rope_scaling=self._rope_scaling(config))

    def _rope_scaling(self, config: LlamaConfig) -> RopeScaling | None:
        """Return the scaling whose divisors a Llama 3.1 or 3.2 file carries as a tensor."""
        if not self._is_llama:
            return None
        if ROPE_DIVISORS not in self._tensors:
            is_llama_3 = all(getattr(config, key) == value for key, value in LLAMA_3.items())
            if is_llama_3 and config.max_positions > 8192:
                raise WeightsError(
                    f"it is a Llama 3.1 or later without {ROPE_DIVISORS}, which older converters "
                    "left out: take a newer conversion."
                )
            return None
        divisors = self._dequantized(ROPE_DIVISORS)
        freq = rope_frequencies(config.head_dim, config.rope_theta)
        for scaling in LLAMA_3_SCALINGS:
            expected = np.asarray(freq / scale_frequencies(freq, scaling))
            if divisors.shape == expected.shape and np.allclose(expected, divisors, rtol=1e-3):
                return scaling
        raise WeightsError("it scales RoPE frequencies in a way that gistjax does not know.")

    def _check_tensors(self) -> None:
        """Refuse tensors that are missing, of another model, or of a type that cannot be read.

        Raises:
            WeightsError: naming the tensor.
        """
        stored = {name: tensor.shape for name, tensor in self._tensors.items()}
        if self._is_llama:
            stored.pop(ROPE_DIVISORS, None)
        expected = expected_shapes(self.config)
        check_stored(stored, {_gguf_name(name): shape for name, shape in expected.items()})
        for name, tensor in self._tensors.items():
            if not _is_readable(tensor.kind):
                raise WeightsError(f"it has {name} as {tensor.kind.name}, which cannot be read.")

    def tensor(self, name: str) -> np.ndarray:
        """Return one tensor in fp32, in Hugging Face layout."""
        array = self._dequantized(_gguf_name(name))
        if self.metadata[ARCHITECTURE] not in INTERLEAVED:
            return array
        if name.endswith("q_proj.weight"):
            return _uninterleave(array, self.config.n_heads)
        if name.endswith("k_proj.weight"):
            return _uninterleave(array, self.config.n_kv_heads)
        return array

    def _dequantized(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        rows = math.prod(tensor.shape[:-1])
        rows //= JOINED_ROWS if rows % JOINED_ROWS == 0 else 1
        array = gguf.quants.dequantize(tensor.data.reshape(rows, -1), tensor.kind)
        return array.reshape(tensor.shape)


@functools.cache
def _is_readable(kind: gguf.GGMLQuantizationType) -> bool:
    """Return whether the package dequantises a type of tensors."""
    one_block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        gguf.quants.dequantize(one_block, kind)
    except NotImplementedError:
        return False
    return True


def _gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)  # model.layers.3.mlp.up_proj.weight
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def _uninterleave(weight_OxI: np.ndarray, n_heads: int) -> np.ndarray:
    """Return the rows (0, H/2, 1, H/2 + 1, …) of each head as (0, 1, …)."""
    rows, width = weight_OxI.shape
    pairs = weight_OxI.reshape(n_heads, rows // n_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
