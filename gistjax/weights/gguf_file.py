"""Weights, config and tokenizer of a GGUF file, by the `gguf` package.

GGUF stores queries and keys with the two halves of each head interleaved, for another form of RoPE; `tensor` undoes it.
"""

from __future__ import annotations

import functools
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig, RopeScaling
from gistjax.model.rope import rope_frequencies, scale_frequencies

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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

PRE_TOKENIZERS = {
    # SmolLM2: digits apart, then GPT-2's pattern.
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    # Llama 3: its own pattern.
    "llama-bpe": lambda: [
        pre_tokenizers.Split(Regex(LLAMA_3_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3_SCALINGS = (RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192))
JOINED_ROWS = 8
"""Rows that are dequantised as one: the package takes 16 at a time, which is little work for each call of numpy."""

CONTROL, USER_DEFINED = 3, 4  # gguf token types that are never split


def open_gguf(path: Path) -> GgufReader:
    """A reader of the file as it is now. Its header, with the whole vocabulary, takes seconds to parse: once is enough.

    Raises:
        WeightsError: see `GgufReader`.
    """
    changed = path.stat().st_mtime_ns if path.exists() else 0
    return _open(path, changed)


@functools.lru_cache(maxsize=1)
def _open(path: Path, changed: int) -> GgufReader:
    return GgufReader(path)


class _WholeFile(gguf.GGUFReader):
    """Refuses to read beyond the end, where the package goes on with empty arrays for as long as a count says."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        array = super()._get(offset, dtype, count, override_order)
        if array.size < int(count):
            raise self._too_short()
        return array

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[gguf.GGUFValueType]]:
        """Arrays in one go: of each element of a vocabulary's three the package makes several numpy arrays."""
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        scalar, first = self.gguf_scalar_to_np.get(kind[0]), orig_offs + 12
        if scalar is not None:
            parts = [self._get(first, scalar, count[0])]
            size = parts[0].nbytes
        elif kind[0] == gguf.GGUFValueType.STRING:
            parts, size = self._strings(first, int(count[0]))
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind[0])]
        return 12 + size, [kind, count, *parts], list(range(2, 2 + len(parts))), types

    def _strings(self, start: int, count: int) -> tuple[list[memoryview], int]:
        """Each string's bytes, and how many they take with their lengths."""
        content, length, place = self.data.data, struct.Struct("=Q"), start
        strings = []
        for _ in range(count):
            if place + 8 > len(content):
                raise self._too_short()
            begin = place + 8
            place = begin + length.unpack_from(content, place)[0]
            strings.append(content[begin:place])
        if place > len(content):
            raise self._too_short()
        return strings, place - start

    def _too_short(self) -> ValueError:
        return ValueError(f"it ends at byte {len(self.data)}")


class GgufReader:
    """One GGUF file.

    Raises:
        WeightsError: if the file is missing, damaged, or not a Llama.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            reader = _WholeFile(path)
            self._meta = {name: field.contents() for name, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except FileNotFoundError as error:
            raise WeightsError(f"there is no file {path}.") from error
        except Exception as error:  # the package raises whatever its parsing stumbles over
            raise WeightsError(
                f"{path} is not a whole GGUF file ({type(error).__name__}: {error}): fetch it again."
            ) from error
        if self._meta.get("general.architecture") != "llama":
            raise WeightsError(
                f"{path} holds a {self._meta.get('general.architecture')!r} model; gistjax runs Llama "
                "2, Llama 3.x and SmolLM2."
            )
        self.config = self._read_config()

    def _get(self, key: str) -> Any:
        if key not in self._meta:
            raise WeightsError(f"{self._path} lacks the entry {key!r}.")
        return self._meta[key]

    def _size(self, key: str, default: int | None = None) -> int:
        size = self._get(key) if default is None else self._meta.get(key, default)
        if not isinstance(size, int) or size < 1:
            raise WeightsError(f"{self._path} gives {size!r} as {key}: fetch the file again.")
        return size

    def _read_config(self) -> LlamaConfig:
        n_heads = self._size("llama.attention.head_count")
        d_model = self._size("llama.embedding_length")
        head_dim = self._size("llama.attention.key_length", d_model // n_heads)
        theta = float(self._meta.get("llama.rope.freq_base", 10_000.0))
        if self._meta.get("llama.rope.scaling.type", "none") != "none":
            raise WeightsError(f"{self._path} uses a RoPE scaling that gistjax does not run.")
        return LlamaConfig(
            vocab_size=len(self._get("tokenizer.ggml.tokens")),
            d_model=d_model,
            d_ff=self._size("llama.feed_forward_length"),
            n_layers=self._size("llama.block_count"),
            n_heads=n_heads,
            n_kv_heads=self._size("llama.attention.head_count_kv", n_heads),
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling=self._rope_scaling(head_dim, theta),
            rms_eps=float(self._get("llama.attention.layer_norm_rms_epsilon")),
            tie_embeddings="output.weight" not in self._tensors,
            max_positions=self._size("llama.context_length"),
        )

    def _rope_scaling(self, head_dim: int, theta: float) -> RopeScaling | None:
        """Llama 3.1 and 3.2 files carry the scaling as a tensor of divisors: find which one it is."""
        if "rope_freqs.weight" not in self._tensors:
            return None
        divisors = self._dequantized("rope_freqs.weight")
        freq = rope_frequencies(head_dim, theta)
        for scaling in LLAMA_3_SCALINGS:
            if np.allclose(freq / scale_frequencies(freq, scaling), divisors, rtol=1e-3):
                return scaling
        raise WeightsError(
            f"{self._path} scales RoPE frequencies in a way that gistjax does not know."
        )

    def tensor(self, name: str) -> np.ndarray:
        """One tensor in fp32, in Hugging Face layout."""
        array = self._dequantized(_gguf_name(name))
        if name.endswith("q_proj.weight"):
            return _uninterleave(array, self.config.n_heads)
        if name.endswith("k_proj.weight"):
            return _uninterleave(array, self.config.n_kv_heads)
        return array

    def _dequantized(self, name: str) -> np.ndarray:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise WeightsError(f"{self._path} lacks the tensor {name}.")
        rows = math.prod(tensor.data.shape[:-1])
        rows //= JOINED_ROWS if rows % JOINED_ROWS == 0 else 1
        try:
            array = gguf.quants.dequantize(tensor.data.reshape(rows, -1), tensor.tensor_type)
            return array.reshape(tensor.shape[::-1])
        except (NotImplementedError, ValueError) as error:
            raise WeightsError(
                f"{self._path}: {name} is stored as {tensor.tensor_type.name}, which cannot be read."
            ) from error

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer in the file's metadata: byte-level BPE, with its special tokens and chat template.

        Raises:
            WeightsError: for another kind of tokenizer, or a damaged one.
        """
        kind, pre = self._get("tokenizer.ggml.model"), self._meta.get("tokenizer.ggml.pre")
        if kind != "gpt2" or pre not in PRE_TOKENIZERS:
            raise WeightsError(
                f"{self._path} holds a tokenizer of kind {kind!r}/{pre!r}; gistjax reads 'gpt2' ones with "
                f"{' or '.join(map(repr, PRE_TOKENIZERS))}. Use the model's Hugging Face folder instead."
            )
        try:
            return self._byte_level_tokenizer(
                PRE_TOKENIZERS[pre](), ignore_merges=pre == "llama-bpe"
            )
        except WeightsError:
            raise
        except Exception as error:  # tokenizers raises the plain Exception
            raise WeightsError(
                f"{self._path} holds a damaged tokenizer ({error}): fetch it again."
            ) from error

    def _byte_level_tokenizer(
        self, pre_tokenizer: list[Any], ignore_merges: bool
    ) -> PreTrainedTokenizerFast:
        tokens: list[str] = self._get("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ", 1)) for merge in self._get("tokenizer.ggml.merges")]
        vocab = {token: index for index, token in enumerate(tokens)}
        bpe = models.BPE(vocab, merges, ignore_merges=ignore_merges)
        backend = Tokenizer(bpe)
        backend.pre_tokenizer = pre_tokenizers.Sequence(pre_tokenizer)
        backend.decoder = decoders.ByteLevel()
        for token, kind in zip(tokens, self._get("tokenizer.ggml.token_type"), strict=True):
            if kind in (CONTROL, USER_DEFINED):
                backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])

        def special(name: str) -> str | None:
            index = self._meta.get(f"tokenizer.ggml.{name}_token_id")
            return None if index is None else tokens[index]

        from transformers import PreTrainedTokenizerFast  # slow to import

        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=special("bos"),
            eos_token=special("eos"),
            unk_token=special("unknown"),
            pad_token=special("padding") or special("eos"),
            clean_up_tokenization_spaces=False,
        )
        fast.chat_template = self._meta.get("tokenizer.chat_template")
        return fast


def _gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)  # model.layers.3.mlp.up_proj.weight
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _uninterleave(weight_OxI: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (0, H/2, 1, H/2 + 1, …) of each head back to (0, 1, …)."""
    rows, width = weight_OxI.shape
    pairs = weight_OxI.reshape(n_heads, rows // n_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
