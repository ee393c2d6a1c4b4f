"""A Llama's sizes and constants, read from Hugging Face's `config.json` or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gistjax.errors import WeightsError


@dataclass(frozen=True)
class RopeScaling:
    """The llama3 frequency scaling (arXiv:2407.21783; `rope_type: llama3` of Hugging Face).

    With 0 original positions no rotation counts as fast, and all are slowed: `linear`.
    """

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
    qkv_biases: bool = False  # on queries, keys and values, as in Qwen2
    qk_norms: bool = False  # RMS norms of each head's query and key, as in Qwen3
    unrotated_layers: tuple[int, ...] = ()  # whose queries and keys know no position: SmolLM3

    @property
    def rotates(self) -> tuple[bool, ...]:
        """Whether each layer's queries and keys have rotary positions, `[L]`."""
        return tuple(layer not in self.unrotated_layers for layer in range(self.n_layers))

    @classmethod
    def from_hugging_face(cls, hf: Mapping[str, Any]) -> LlamaConfig:
        """Read a Hugging Face `config.json`; a key that is null counts as one that is not there.

        Raises:
            WeightsError: where the file asks for something that this model does not do, or that
                gistjax does not know.
        """
        hf = {key: value for key, value in hf.items() if value is not None}
        _refuse_other_models(hf)
        _refuse_malformed(hf)
        rope = _rope(hf)
        n_heads = hf["num_attention_heads"]
        config = cls(
            vocab_size=hf["vocab_size"],
            d_model=hf["hidden_size"],
            d_ff=hf["intermediate_size"],
            n_layers=hf["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=hf.get("num_key_value_heads", n_heads),
            head_dim=hf.get("head_dim", hf["hidden_size"] // n_heads),
            rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0))),
            rope_scaling=_rope_scaling(rope),
            rms_eps=float(hf.get("rms_norm_eps", 1e-6)),
            tie_embeddings=hf.get("tie_word_embeddings", False),
            max_positions=hf.get("max_position_embeddings", 2048),
        )
        _refuse_other_sizes(config, hf)
        return config


REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
SIZES = (*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings")
NUMBERS = ("rope_theta", "rms_norm_eps")
GROUPS = ("rope_scaling", "rope_parameters")
"""The keys of RoPE: those of transformers 4 beside `rope_theta`, and those of transformers 5."""
READ = frozenset((*SIZES, *NUMBERS, *GROUPS, "tie_word_embeddings", "model_type"))
"""Keys of a `config.json` that are read."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "embedding_multiplier": (1.0,),
    "embedding_scale": (1.0,),
    "final_logit_softcapping": (),
    "hidden_act": ("silu", "swish"),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "mlp_bias": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "partial_rotary_factor": (1.0,),
    "pruned_heads": ({},),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1.0,),
    "residual_scale": (1.0,),
    "rope_interleaved": (False,),
    "sliding_window": (),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}
"""Keys that change numbers, with the values beside null at which they change none."""

_HARMLESS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path architectures attention_dropout attn_implementation bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range
    is_llama_config label2id length_penalty mask_token_id max_length max_sequence_length min_length
    model_max_length no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type remove_invalid_values repetition_penalty resid_pdrop residual_dropout return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed
    unsloth_version use_bfloat16 use_cache
    """
HARMLESS = frozenset(_HARMLESS.split())
"""Keys that change no state and no logit: names, dropout, how other programs train or sample."""

ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_KEYS = {*ROPE_NUMBERS, "rope_theta", "partial_rotary_factor", "rope_type", "type"}
LARGEST = {"num_hidden_layers": 1024, "num_attention_heads": 4096, "num_key_value_heads": 4096}
"""Beyond these, and 2^24 for other sizes, a file is damaged or hostile: no model is larger."""

MODELS = "Llama 2 and 3.x, SmolLM2 and 3, Mistral, Qwen2, Qwen2.5 and Qwen3"
KINDS_OF_ROPE = ("default", "linear", "llama3")
RUNS = f"gistjax runs {MODELS} (silu, no biases but Qwen2's, RoPE of {', '.join(KINDS_OF_ROPE)})."


def _refuse_other_models(hf: Mapping[str, Any]) -> None:
    """Refuse what this model does not compute, and keys of which nobody can tell.

    Raises:
        WeightsError: naming the key.
    """
    if hf.get("model_type", "llama") != "llama":
        raise WeightsError(f"cannot load this base: the model type is {hf['model_type']!r}. {RUNS}")
    for key, value in hf.items():
        if key == "layer_types":
            neutral = isinstance(value, list) and {*map(str, value)} <= {"full_attention"}
        else:
            neutral = key not in NEUTRAL or value in NEUTRAL[key]
        if not neutral:
            raise WeightsError(f"cannot load this base: it has {key}={value!r}. {RUNS}")
        if key not in READ | NEUTRAL.keys() | HARMLESS | {"layer_types"}:
            raise WeightsError(
                f"cannot load this base: gistjax does not know its {key}={str(value)[:80]}. If it "
                "changes nothing that the model computes, take it out of the file."
            )


def _refuse_malformed(hf: Mapping[str, Any]) -> None:
    """Refuse values of the wrong type, and sizes that are none.

    Raises:
        WeightsError: naming the key.
    """
    if missing := [key for key in REQUIRED if key not in hf]:
        raise WeightsError(f"cannot load this base: its config lacks {', '.join(missing)}.")
    right: dict[str, bool] = {key: _is_number(hf.get(key, 1)) for key in NUMBERS}
    right |= {key: _is_size(hf.get(key, 1), LARGEST.get(key, 2**24)) for key in SIZES}
    right["tie_word_embeddings"] = isinstance(hf.get("tie_word_embeddings", False), bool)
    right |= {key: isinstance(hf.get(key, {}), Mapping) for key in GROUPS}
    for key, is_right in right.items():
        if not is_right:
            raise WeightsError(f"{key} is {hf[key]!r}: fetch the file again.")


def _is_size(value: Any, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _refuse_other_sizes(config: LlamaConfig, hf: Mapping[str, Any]) -> None:
    """Refuse heads that cannot be.

    Raises:
        WeightsError: with the sizes.
    """
    if config.n_heads % config.n_kv_heads:
        raise WeightsError(
            f"cannot load this base: its {config.n_heads} query heads do not divide by its "
            f"{config.n_kv_heads} key/value heads."
        )
    if "head_dim" not in hf and config.d_model % config.n_heads:
        raise WeightsError(
            f"cannot load this base: its width {config.d_model} does not divide by its "
            f"{config.n_heads} heads, and it has no head_dim."
        )
    if config.head_dim % 2:
        raise WeightsError(
            f"cannot load this base: RoPE turns pairs, and its heads have {config.head_dim} "
            "numbers, which is odd."
        )


def _rope(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of RoPE that are not null.

    Raises:
        WeightsError: where the two spellings contradict each other, or a key is unknown, malformed
            or of another kind of RoPE.
    """
    older, newer = (
        {key: value for key, value in hf.get(group, {}).items() if value is not None}
        for group in GROUPS
    )
    if older and newer and any(newer.get(key, value) != value for key, value in older.items()):
        raise WeightsError(
            f"rope_scaling is {older} and rope_parameters is {newer}: take one of them out of the "
            "file."
        )
    rope = older | newer
    if (theta := hf.get("rope_theta")) is not None and rope.get("rope_theta", theta) != theta:
        raise WeightsError(
            f"rope_theta is {theta} and that of rope_parameters {rope['rope_theta']}: take one of "
            "them out of the file."
        )
    for key, value in rope.items():
        if key not in ROPE_KEYS:
            raise WeightsError(
                f"cannot load this base: gistjax does not know {key}={value!r} of its RoPE. {RUNS}"
            )
        if key not in ("rope_type", "type") and not _is_number(value):
            raise WeightsError(f"{key} of RoPE is {value!r}: fetch the file again.")
    kind = _rope_type(rope)
    if kind not in KINDS_OF_ROPE or (kind == "default" and rope.get("factor", 1) != 1):
        raise WeightsError(
            f"cannot load this base: its RoPE type is {kind!r}, its factor {rope.get('factor')}. "
            f"{RUNS}"
        )
    required = {"default": (), "linear": ("factor",), "llama3": ROPE_NUMBERS}[kind]
    if missing := [key for key in required if key not in rope]:
        raise WeightsError(f"its RoPE lacks {', '.join(missing)}: fetch the file again.")
    if kind == "llama3" and not rope["low_freq_factor"] < rope["high_freq_factor"]:
        raise WeightsError("low_freq_factor of RoPE is not below its high_freq_factor.")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise WeightsError("cannot load this base: its RoPE turns only a part of each head.")
    return rope


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    if _rope_type(rope) == "linear":
        return RopeScaling(float(rope["factor"]), 0.0, 1.0, 0)
    if _rope_type(rope) != "llama3":
        return None
    factor, low, high, positions = (rope[key] for key in ROPE_NUMBERS)
    return RopeScaling(float(factor), float(low), float(high), int(positions))
