"""Metadata of a GGUF file: each entry is read, changes no number, or is refused.

The names are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's
converters. `[llm]` stands for the name of the architecture, as there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from gistjax.errors import WeightsError
from gistjax.model.config import MODELS, LlamaConfig

ARCHITECTURE, TOKENS = "general.architecture", "tokenizer.ggml.tokens"
ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
"""As they are named in the metadata. Mistral is there a Llama."""

SIZES = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
"""Sizes, under `[llm].`, with their names in a Hugging Face config."""
NUMBERS = {
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
REQUIRED = (
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "attention.head_count",
    "context_length",
    "attention.layer_norm_rms_epsilon",
)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "[llm].attention.causal": (True,),
    "[llm].attention.clamp_kqv": (0.0,),
    "[llm].attention.max_alibi_bias": (0.0,),
    "[llm].attention.sliding_window": (0,),
    "[llm].embedding_scale": (1.0,),
    "[llm].expert_count": (0,),
    "[llm].expert_used_count": (0,),
    "[llm].logit_scale": (1.0,),
    "[llm].residual_scale": (1.0,),
    "[llm].rope.scale_linear": (1.0,),
    "[llm].rope.scaling.attn_factor": (1.0,),
    "[llm].rope.scaling.factor": (1.0,),
    "[llm].rope.scaling.type": ("none",),
    "[llm].tensor_data_layout": ("reference",),
    "[llm].use_parallel_residual": (False,),
    "split.count": (0, 1),
    "tokenizer.ggml.add_sep_token": (False,),
    "tokenizer.ggml.add_space_prefix": (False,),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
}
"""Entries that change numbers, with the values at which they change none."""

READ = frozenset(
    (
        ARCHITECTURE,
        TOKENS,
        *(f"[llm].{key}" for key in (*SIZES, *NUMBERS)),
        "[llm].attention.value_length",
        "[llm].rope.dimension_count",
        "[llm].vocab_size",
        "tokenizer.chat_template",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eos_token_ids",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.model",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.unknown_token_id",
    )
)
"""Entries that are read, or checked against what is read."""

HARMLESS = re.compile(
    r"general\..+|mradermacher\..+|quantize\.imatrix\..+|split\.(no|tensors\.count)"
    r"|\[llm\]\.rope\.scaling\.(original_context_length|finetuned)"
    r"|tokenizer\.chat_template\..+|tokenizer\.chat_templates"
    r"|tokenizer\.ggml\.(scores|add_(padding|mask|unknown)_token|(?!merges)[a-z_]+_token_id)"
)
"""Entries that change no number: names, how the file was made, and tokens that no prompt has."""


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse models of other families, and entries that ask for something that gistjax does not do.

    Raises:
        WeightsError: naming the entry.
    """
    if (kind := metadata.get(ARCHITECTURE)) not in ARCHITECTURES:
        raise WeightsError(f"it holds a {kind!r} model; gistjax runs {MODELS}.")
    if metadata.get("split.count", 0) not in NEUTRAL["split.count"]:
        raise WeightsError(
            f"it is one of {metadata['split.count']} files that the model was split into: join "
            "them with llama.cpp's `llama-gguf-split --merge`."
        )
    for key, value in metadata.items():
        name = f"[llm].{key[len(kind) + 1 :]}" if key.startswith(f"{kind}.") else key
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise WeightsError(f"it has {key}={value!r}, which gistjax does not run.")
        if name not in READ | NEUTRAL.keys() and not HARMLESS.fullmatch(name):
            raise WeightsError(
                f"it has the entry {key}={str(value)[:80]}, which gistjax does not know, and which "
                "may change numbers. Use the model's Hugging Face folder instead."
            )


def read_sizes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return sizes and constants under their names in a Hugging Face config.

    Raises:
        WeightsError: naming the entry that is missing, of a wrong type, or contradicts another.
    """
    kind = metadata[ARCHITECTURE]
    for key in (*(f"{kind}.{key}" for key in REQUIRED), TOKENS):
        if key not in metadata:
            raise WeightsError(f"it lacks the entry {key!r}.")
    hf: dict[str, Any] = {"model_type": kind, "vocab_size": len(metadata[TOKENS])}
    for key, name in (SIZES | NUMBERS).items():
        value = metadata.get(f"{kind}.{key}")
        kinds = (int,) if key in SIZES else (float, int)
        if value is not None:
            if type(value) not in kinds or not 0 < value < math.inf:
                raise WeightsError(f"it gives {value!r} as {kind}.{key}: fetch the file again.")
            hf[name] = value
    return hf


def check_sizes(metadata: Mapping[str, Any], config: LlamaConfig) -> None:
    """Refuse sizes that are given twice and differ.

    Raises:
        WeightsError: naming the entry.
    """
    kind = metadata[ARCHITECTURE]
    for key, size in (
        (f"{kind}.vocab_size", config.vocab_size),
        (f"{kind}.rope.dimension_count", config.head_dim),
        (f"{kind}.attention.value_length", config.head_dim),
    ):
        if metadata.get(key, size) != size:
            raise WeightsError(
                f"it has {key}={metadata[key]!r}, where its other sizes ask for {size}: gistjax "
                "runs models in which they agree."
            )
