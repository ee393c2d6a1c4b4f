"""The decoder's adapter in the format of PEFT (Hugging Face), for PyTorch.

The files are `adapter_config.json` and `adapter_model.safetensors`. The decoder's adapter is all
that `configs/full_context.py` trains. One that was trained to read slots is of use with slots only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from gistjax.compress import EXPORTED
from gistjax.compress.parameters import abstract_model, import_trainable, split_model
from gistjax.config import CompressionConfig, LoraConfig
from gistjax.errors import ConfigError
from gistjax.runtime.files import make_folder, write_atomically, write_json
from gistjax.runtime.sharding import path_name
from gistjax.weights.registry import resolve

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Projection to its module in a layer of transformers' Llama."""


def export_peft(run: Path, config: CompressionConfig, output: Path, base_name: str) -> list[str]:
    """Write both files and return their names.

    Args:
        base_name: the base as PEFT is to load it, a hub repository.

    Raises:
        CheckpointError: if the run has no exported leaves, or others than its configuration says.
        ConfigError: if its decoder has no adapter.
        StorageError: if the files cannot be written.
        WeightsError: if the sizes of its base cannot be found.
    """
    if config.lora.rank == 0 or not config.lora.targets:
        raise ConfigError(f"the decoder of {run} has no adapter (lora.rank=0): nothing to export.")
    base = resolve(config.model, offline=True).config
    _, shapes, _ = split_model(abstract_model(config, base))
    trainable = import_trainable(run / EXPORTED, shapes)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
        parts = path_name(path).split("/")  # lora/adapters/q/a
        if parts[0] == "lora":
            tensors |= _tensors(parts[2], parts[3], np.asarray(leaf))
    make_folder(output)
    write_atomically(output / ADAPTER, save(tensors, metadata={"format": "pt"}))
    write_json(output / ADAPTER_CONFIG, adapter_config(config.lora, base_name))
    return [ADAPTER, ADAPTER_CONFIG]


def _tensors(projection: str, factor: str, stacked_LxIxO: np.ndarray) -> dict[str, np.ndarray]:
    """Return one factor of each layer by its name in PEFT, which keeps matrices as `[out, in]`."""
    end = f"{MODULES[projection]}.lora_{factor.upper()}.weight"
    return {
        f"base_model.model.model.layers.{layer}.{end}": np.ascontiguousarray(matrix_IxO.T)
        for layer, matrix_IxO in enumerate(stacked_LxIxO)
    }


def adapter_config(lora: LoraConfig, base_name: str) -> dict[str, Any]:
    """Return what PEFT needs to know of an adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": [MODULES[target].rpartition(".")[2] for target in lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
