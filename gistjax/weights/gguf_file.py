"""Weights and config of a Llama in a GGUF file.

GGUF interleaves the two halves of each query and key head, for another form of RoPE;
`GgufReader.tensor` undoes it.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig, RopeScaling
from gistjax.model.rope import rope_frequencies, scale_frequencies
from gistjax.weights.gguf_header import read_header

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face name to GGUF name."""

LLAMA_3_SCALINGS = (RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192))

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
        WeightsError: if the file is missing, damaged, or holds no Llama.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.metadata, self._tensors = read_header(path)
        except FileNotFoundError as error:
            raise WeightsError(f"there is no file {path}.") from error
        except Exception as error:  # a damaged header can make parsing stumble in many ways
            raise WeightsError(
                f"{path} is not a whole GGUF file ({type(error).__name__}: {error}): "
                "fetch it again."
            ) from error
        kind = self.metadata.get("general.architecture")
        if kind != "llama":
            raise WeightsError(
                f"{path} holds a {kind!r} model; gistjax runs Llama 2, Llama 3.x and SmolLM2."
            )
        self.config = self._read_config()

    def entry(self, key: str) -> Any:
        """Return a value of the metadata.

        Raises:
            WeightsError: if it is missing.
        """
        if key not in self.metadata:
            raise WeightsError(f"{self.path} lacks the entry {key!r}.")
        return self.metadata[key]

    def _size(self, key: str, default: int | None = None) -> int:
        size = self.entry(key) if default is None else self.metadata.get(key, default)
        if not isinstance(size, int) or size < 1:
            raise WeightsError(f"{self.path} gives {size!r} as {key}: fetch the file again.")
        return size

    def _read_config(self) -> LlamaConfig:
        n_heads = self._size("llama.attention.head_count")
        d_model = self._size("llama.embedding_length")
        head_dim = self._size("llama.attention.key_length", d_model // n_heads)
        theta = float(self.metadata.get("llama.rope.freq_base", 10_000.0))
        if self.metadata.get("llama.rope.scaling.type", "none") != "none":
            raise WeightsError(f"{self.path} uses a RoPE scaling that gistjax does not run.")
        return LlamaConfig(
            vocab_size=len(self.entry("tokenizer.ggml.tokens")),
            d_model=d_model,
            d_ff=self._size("llama.feed_forward_length"),
            n_layers=self._size("llama.block_count"),
            n_heads=n_heads,
            n_kv_heads=self._size("llama.attention.head_count_kv", n_heads),
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling=self._rope_scaling(head_dim, theta),
            rms_eps=float(self.entry("llama.attention.layer_norm_rms_epsilon")),
            tie_embeddings="output.weight" not in self._tensors,
            max_positions=self._size("llama.context_length"),
        )

    def _rope_scaling(self, head_dim: int, theta: float) -> RopeScaling | None:
        """Return the scaling whose divisors a Llama 3.1 or 3.2 file carries as a tensor."""
        if "rope_freqs.weight" not in self._tensors:
            return None
        divisors = self._dequantized("rope_freqs.weight")
        freq = rope_frequencies(head_dim, theta)
        for scaling in LLAMA_3_SCALINGS:
            if np.allclose(freq / scale_frequencies(freq, scaling), divisors, rtol=1e-3):
                return scaling
        raise WeightsError(
            f"{self.path} scales RoPE frequencies in a way that gistjax does not know."
        )

    def tensor(self, name: str) -> np.ndarray:
        """Return one tensor in fp32, in Hugging Face layout."""
        array = self._dequantized(_gguf_name(name))
        if name.endswith("q_proj.weight"):
            return _uninterleave(array, self.config.n_heads)
        if name.endswith("k_proj.weight"):
            return _uninterleave(array, self.config.n_kv_heads)
        return array

    def _dequantized(self, name: str) -> np.ndarray:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise WeightsError(f"{self.path} lacks the tensor {name}.")
        rows = math.prod(tensor.shape[:-1])
        rows //= JOINED_ROWS if rows % JOINED_ROWS == 0 else 1
        try:
            array = gguf.quants.dequantize(tensor.data.reshape(rows, -1), tensor.kind)
            return array.reshape(tensor.shape)
        except (NotImplementedError, ValueError) as error:
            raise WeightsError(
                f"{self.path}: {name} is stored as {tensor.kind.name}, which cannot be read."
            ) from error


def _gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)  # model.layers.3.mlp.up_proj.weight
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _uninterleave(weight_OxI: np.ndarray, n_heads: int) -> np.ndarray:
    """Return the rows (0, H/2, 1, H/2 + 1, …) of each head as (0, 1, …)."""
    rows, width = weight_OxI.shape
    pairs = weight_OxI.reshape(n_heads, rows // n_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
