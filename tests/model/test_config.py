import pytest

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
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(change, reason):
    with pytest.raises(WeightsError, match=reason):
        LlamaConfig.from_hugging_face({**LLAMA_31, **change})
