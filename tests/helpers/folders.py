"""The tiny random base as a Hugging Face folder."""

import json

import numpy as np
from safetensors.numpy import save_file

from gistjax.config import MeshConfig, ModelConfig
from gistjax.runtime.sharding import make_mesh
from gistjax.weights.loading import NAMES
from gistjax.weights.registry import load_base, resolve
from gistjax.weights.tokenizers import byte_tokenizer
from tests.helpers.tiny import projections

HF = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 2048,
}


def write_base(path):
    """Weights, config and tokenizer of a byte a token."""
    model = ModelConfig(name="tiny-random", dtype="float32", scan_layers=True)
    base = load_base(resolve(model), model, make_mesh(MeshConfig()))
    tensors, parts = {}, projections(base)
    for leaf, name in NAMES.items():
        if "_bias" in leaf or leaf in ("layers/q_norm", "layers/k_norm"):
            continue
        part = leaf.removeprefix("layers/")
        array = np.asarray(parts[part] if part in parts else get(base, leaf))
        if "{}" in name:
            for layer, one in enumerate(array):
                tensors[name.format(layer)] = np.ascontiguousarray(one.T)
        else:
            tensors[name] = array
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(HF))
    byte_tokenizer().save_pretrained(path)
    return path


def get(base, leaf):
    for part in leaf.split("/"):
        base = getattr(base, part)
    return base[...]
