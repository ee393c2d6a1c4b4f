"""Weights and config of a Hugging Face folder: `config.json` and safetensors, perhaps in shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig

FAMILIES: dict[str, Callable[[Mapping[str, Any]], LlamaConfig]] = {
    "llama": LlamaConfig.from_hugging_face,
}
"""The `model_type` of a `config.json`, and what reads it. A family that is not here is refused."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path) -> LlamaConfig:
    """Return the base's sizes.

    Raises:
        WeightsError: if `config.json` is missing or damaged, or names what gistjax does not run.
    """
    hf = _read_json(folder / "config.json")
    if "quantization_config" in hf:
        raise WeightsError(
            f"{folder} holds quantised weights; gistjax reads bf16, fp16 and fp32 safetensors, "
            "and GGUF files. Give the unquantised model or a GGUF of it."
        )
    read = FAMILIES.get(str(hf.get("model_type")), LlamaConfig.from_hugging_face)
    try:
        return read(hf)
    except WeightsError as error:
        raise WeightsError(f"{folder / 'config.json'}: {error}") from error


class SafetensorsReader:
    """Tensors of a folder, read one by one.

    Raises:
        WeightsError: if the folder has no weights, or a shard is missing or damaged.
    """

    def __init__(self, folder: Path):
        self._file_of = _files(folder)
        self._open: dict[Path, Any] = {}
        for path in sorted(set(self._file_of.values())):
            self._open[path] = _open(path)
        present = {path: set(file.keys()) for path, file in self._open.items()}
        for name, path in self._file_of.items():
            if name not in present[path]:
                raise WeightsError(f"{path} lacks {name}, which {INDEX} says is in it.")

    def tensor(self, name: str) -> np.ndarray:
        """Return one tensor, in the dtype of the file."""
        path = self._file_of.get(name)
        if path is None:
            raise WeightsError(f"the weights lack {name}: is this the whole model?")
        try:
            array: np.ndarray = self._open[path].get_tensor(name)
        except (SafetensorError, TypeError, ValueError, OSError) as error:
            raise WeightsError(f"{path}: cannot read {name} ({error}).") from error
        return array


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightsError(f"{folder / INDEX} has no weight_map: fetch the file again.")
        for file in set(weight_map.values()):
            if not isinstance(file, str) or Path(file).name != file:
                raise WeightsError(
                    f"{folder / INDEX} names {file!r}, which is not a file beside it."
                )
        return {name: folder / file for name, file in weight_map.items()}
    single = folder / SINGLE
    if not single.is_file():
        raise WeightsError(f"{folder} has neither {SINGLE} nor {INDEX}: is it a model folder?")
    return dict.fromkeys(_open(single).keys(), single)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: fetch the model's other shards.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or cut short ({error}): fetch it again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: is {path.parent} a model folder?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} does not hold a JSON object.")
    return content
