"""Write a synthetic Hugging Face folder of a known shape, to measure loading without the weights.

python launch/synthetic_weights.py --name llama-3.2-1b-instruct --folder FOLDER
python -m gistjax.benchmark --mode load --config.model.name=llama-3.2-1b-instruct
    --config.model.path=FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from gistjax.model.config import LlamaConfig
from gistjax.weights.loading import expected_shapes
from gistjax.weights.registry import KNOWN


def hugging_face_config(c: LlamaConfig) -> dict[str, Any]:
    """Return sizes as a `config.json` has them; the scaling of rotary positions is left out."""
    own = {"qwen2": c.qkv_biases, "qwen3": c.qk_norms, "smollm3": c.unrotated_layers}
    return {
        "model_type": next((name for name, differs in own.items() if differs), "llama"),
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_eps,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tie_embeddings,
        "max_position_embeddings": c.max_positions,
    }


def write_folder(name: str, folder: Path) -> None:
    """Write one shard a layer, so that no more than a layer is in memory."""
    c = KNOWN[name].config
    shapes = expected_shapes(c)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    index: dict[str, str] = {}

    def save(file: str, leaves: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            key: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for key, shape in leaves.items()
        }
        save_file(tensors, folder / file)
        index.update(dict.fromkeys(tensors, file))

    of_layer = "model.layers."
    save("model-top.safetensors", {k: s for k, s in shapes.items() if not k.startswith(of_layer)})
    for layer in range(c.n_layers):
        leaves = {k: s for k, s in shapes.items() if k.startswith(f"{of_layer}{layer}.")}
        save(f"model-{layer:05d}.safetensors", leaves)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(hugging_face_config(c)))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="llama-3.2-1b-instruct", choices=sorted(KNOWN))
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    write_folder(args.name, args.folder)


if __name__ == "__main__":
    main()
