"""Configs of Mistral and Qwen: what is read, and what is refused by its name."""

import json

import gguf
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from gistjax.errors import WeightsError
from gistjax.weights.families import FAMILIES
from gistjax.weights.gguf_file import GgufReader
from gistjax.weights.hugging_face import SafetensorsReader, read_config
from gistjax.weights.registry import KNOWN
from tests.helpers.families import OWN, torch_model, write_gguf

MISTRAL = {
    "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768,
    "sliding_window": None, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
QWEN2 = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 32768,
    "sliding_window": 32768, "max_window_layers": 21, "use_sliding_window": False,
    "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
QWEN3 = {
    **QWEN2, "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "max_position_embeddings": 40960, "sliding_window": None, "max_window_layers": 28,
    "attention_bias": False, "rope_scaling": None,
}  # fmt: skip
SMOLLM3 = {
    "model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 5000000.0, "rope_scaling": None,
    "max_position_embeddings": 65536, "no_rope_layers": [1, 1, 1, 0] * 9,
    "no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None,
    "layer_types": ["full_attention"] * 36, "max_window_layers": 28, "attention_bias": False,
    "mlp_bias": False, "hidden_act": "silu",
}  # fmt: skip
PUBLISHED = {
    "mistral-7b-instruct-v0.3": MISTRAL,
    "qwen2.5-0.5b-instruct": QWEN2,
    "qwen3-0.6b": QWEN3,
    "smollm3-3b": SMOLLM3,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_known_one(name):
    hf = PUBLISHED[name]
    assert FAMILIES[hf["model_type"]](hf) == KNOWN[name].config


@pytest.mark.parametrize("family", OWN)
def test_every_key_that_transformers_writes_is_known(family):
    theirs = transformers.AutoConfig.for_model(family, **OWN[family]).to_dict()
    FAMILIES[family](json.loads(json.dumps(theirs)))


@pytest.mark.parametrize(
    ("hf", "change", "says"),
    [
        (MISTRAL, {"sliding_window": 4096}, "sliding_window=4096"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window=0"),
        (MISTRAL, {"sliding_window": ...}, "lacks sliding_window"),
        (MISTRAL, {"num_key_value_heads": ...}, "lacks num_key_value_heads"),
        (MISTRAL, {"attention_bias": True}, "attention_bias=True"),
        (QWEN2, {"use_sliding_window": True}, "sliding_window="),
        (QWEN2, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        (QWEN2, {"num_key_value_heads": None}, "lacks num_key_value_heads"),
        (QWEN2, {"use_mrope": True}, "use_mrope=True"),
        (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        (QWEN3, {"head_dim": ...}, "lacks head_dim"),
        (QWEN3, {"attention_bias": True}, "attention_bias=True"),
        (QWEN3, {"num_experts": 128}, "num_experts=128"),
        (QWEN3, {"mystery": 1}, "does not know its mystery=1"),
        (QWEN3, {"rope_parameters": {"full_attention": {}}}, "does not know full_attention="),
        (SMOLLM3, {"num_key_value_heads": ...}, "lacks num_key_value_heads"),
        (SMOLLM3, {"rope_theta": ...}, "lacks rope_theta"),
        (SMOLLM3, {"rope_theta": ..., "rope_parameters": {"rope_type": "default"}}, "rope_theta"),
        (SMOLLM3, {"no_rope_layers": [1, 1, 1, 0]}, "no list of 36 layers"),
        (SMOLLM3, {"no_rope_layers": "1110"}, "no list of 36 layers"),
        (SMOLLM3, {"no_rope_layers": [1, 2, 1, 0] * 9}, "other numbers than 0 and 1"),
        (SMOLLM3, {"no_rope_layers": None, "no_rope_layer_interval": 2}, "no_rope_layer_interval"),
        (SMOLLM3, {"use_sliding_window": True, "sliding_window": 128}, "sliding_window="),
        (SMOLLM3, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'"),
        (QWEN3, {"no_rope_layers": [1, 1, 1, 0] * 7}, "does not know its no_rope_layers"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(hf, change, says):
    changed = {key: value for key, value in {**hf, **change}.items() if value is not ...}
    with pytest.raises(WeightsError, match=says):
        FAMILIES[hf["model_type"]](changed)


def test_layers_without_positions_are_every_fourth_where_the_file_does_not_say():
    without = {k: v for k, v in SMOLLM3.items() if not k.startswith("no_rope")}
    assert FAMILIES["smollm3"](without) == FAMILIES["smollm3"](SMOLLM3)
    untied = FAMILIES["smollm3"]({**SMOLLM3, "tie_word_embeddings": False})
    assert not untied.tie_embeddings and FAMILIES["smollm3"](SMOLLM3).tie_embeddings


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "qwen2_moe", "qwen3_moe"])
def test_other_families_are_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**QWEN3, "model_type": kind}))
    with pytest.raises(WeightsError, match=f"the model type is '{kind}'"):
        read_config(tmp_path)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "qwen2moe", "mistral3"])
def test_other_architectures_of_gguf_are_refused_by_name(kind, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=f"it holds a '{kind}' model"):
        GgufReader(tmp_path / "m.gguf")


ATTENTION = "model.layers.1.self_attn."


@pytest.mark.parametrize(
    ("family", "name", "gone"),
    [
        ("qwen2", "q_proj.bias", True),
        ("qwen2", "o_proj.bias", False),
        ("qwen2", "q_norm.weight", False),
        ("qwen3", "k_norm.weight", True),
        ("qwen3", "v_proj.bias", False),
        ("mistral", "q_proj.bias", False),
    ],
)
def test_biases_and_norms_are_those_of_the_family(family, name, gone, tmp_path):
    torch_model(family).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if gone:
        tensors.pop(ATTENTION + name)
    else:
        tensors[ATTENTION + name] = np.ones(64, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        WeightsError, match=("lacks the" if gone else "has a") + f" tensor .*{name}"
    ):
        SafetensorsReader(tmp_path, read_config(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qwen2.rope.scaling.type", "yarn"),
        ("qwen2.attention.sliding_window", 64),
        ("qwen2.something_new", 1),
        ("llama.context_length", 99),
    ],
)
def test_an_entry_of_another_family_is_refused_by_name(key, value, tmp_path):
    write_gguf(torch_model("qwen2"), tmp_path / "m.gguf", **{key: value})
    with pytest.raises(WeightsError, match=rf"it has .*{key}="):
        GgufReader(tmp_path / "m.gguf")
