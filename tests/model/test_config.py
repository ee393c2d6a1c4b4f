import pytest
from transformers import LlamaConfig as TheirConfig

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig

LLAMA_31 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
ROPE = LLAMA_31["rope_scaling"]


def test_config_from_hugging_face():
    config = LlamaConfig.from_hugging_face(LLAMA_31)
    assert (config.d_model, config.head_dim, config.n_kv_heads) == (4096, 128, 8)
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_positions == 8192
    rope = {**LLAMA_31["rope_scaling"], "rope_theta": 500000.0}
    newer = {k: v for k, v in LLAMA_31.items() if k not in ("rope_scaling", "rope_theta")}
    assert LlamaConfig.from_hugging_face({**newer, "rope_parameters": rope}) == config


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"num_key_value_heads": 5}, "divide"),
        ({"num_attention_heads": 24, "num_key_value_heads": 8}, "width 4096 does not divide"),
        ({"head_dim": 127}, "which is odd"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping=30.0"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"rope_interleaved": True}, "rope_interleaved=True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar=256"),
        ({"auto_map": {"AutoModelForCausalLM": "mine.Model"}}, "does not know its auto_map="),
        ({"layer_scale": 0.5}, "does not know its layer_scale=0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic', its factor 2.0"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "its RoPE type is"),
        ({"rope_scaling": {"factor": 2.0}}, "'default', its factor 2.0"),
        ({"rope_scaling": {"rope_type": "default", "attention_factor": 2.0}}, "attention_factor"),
        ({"rope_scaling": {**ROPE, "low_freq_factor": 4.0}}, "is not below"),
        ({"rope_scaling": {**ROPE, "partial_rotary_factor": 0.5}}, "only a part of each head"),
        ({"rope_scaling": {"full_attention": ROPE}}, "does not know full_attention"),
        ({"rope_parameters": {**ROPE, "factor": 32.0}}, "rope_scaling is .* and rope_parameters"),
        ({"rope_scaling": None, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 500000"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(change, reason):
    with pytest.raises(WeightsError, match=reason):
        LlamaConfig.from_hugging_face({**LLAMA_31, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"tie_word_embeddings": "false"},
        {"tie_word_embeddings": 1},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": True},
        {"rope_theta": "500000"},
        {"head_dim": 0},
        {"vocab_size": 128256.0},
        {"max_position_embeddings": -1},
        {"rope_scaling": {**ROPE, "factor": -8}},
        {"rope_scaling": "llama3"},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused_by_its_key(change):
    key = "factor" if "factor" in str(change) else next(iter(change))
    with pytest.raises(WeightsError, match=f"{key} .*is .*: fetch the file again"):
        LlamaConfig.from_hugging_face({**LLAMA_31, **change})


def test_what_changes_no_number_is_passed_over():
    harmless = {"layer_types": ["full_attention"] * 32, "hidden_act": "swish", "head_dim": None}
    harmless |= {"sliding_window": None, "logit_scale": 1.0, "pretraining_tp": 2, "unknown": None}
    harmless |= {"rope_interleaved": False, "is_llama_config": True, "_name_or_path": "somewhere"}
    config = LlamaConfig.from_hugging_face(LLAMA_31)
    assert LlamaConfig.from_hugging_face(LLAMA_31 | harmless) == config


def test_every_key_that_transformers_writes_is_known():
    theirs = TheirConfig(vocab_size=9, rope_parameters={**ROPE, "rope_theta": 5e5}).to_dict()
    assert LlamaConfig.from_hugging_face(theirs).vocab_size == 9
