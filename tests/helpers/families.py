"""Small random models of every family, by transformers, as a folder and as a GGUF file."""

import gguf
import transformers

from gistjax.weights.gguf_file import INTERLEAVED
from tests.helpers.gguf_files import add, interleave
from tests.helpers.lazy import torch

V = 97
SIZES = {
    "vocab_size": V, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
    "eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
OWN = {
    "llama": {},
    "mistral": {"sliding_window": None, "head_dim": 24},
    "qwen2": {"sliding_window": 32, "use_sliding_window": False},
    "qwen3": {"sliding_window": 32, "use_sliding_window": False, "head_dim": 24},
    "smollm3": {"num_hidden_layers": 4},
}
"""What is special about a family's config."""


def torch_model(family, **changes):
    """A model whose biases and norms matter."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **OWN[family], **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(
                1 + 0.3 * noise if "norm" in name
                else 0.5 * noise if name.endswith("bias")
                else noise / weight.shape[1] ** 0.5
            )  # fmt: skip
    return model


def write_gguf(model, path, **extra):
    """What llama.cpp's converter makes of a model; its names are those of the gguf package."""
    config = model.config
    kind = {"mistral": "llama"}.get(config.model_type, config.model_type)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, kind)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    entries = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head, "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }  # fmt: skip
    for key, value in ({f"{kind}.{key}": value for key, value in entries.items()} | extra).items():
        add(writer, key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}" for i in range(V)])
    writer.add_token_types([1] * V)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(0)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.numpy()
        if kind in INTERLEAVED and "q_proj" in name:
            array = interleave(array, config.num_attention_heads)
        elif kind in INTERLEAVED and "k_proj" in name:
            array = interleave(array, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
