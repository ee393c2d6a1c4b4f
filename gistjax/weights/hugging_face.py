"""Weights and config of a Hugging Face folder: `config.json` and safetensors, perhaps in shards."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gistjax.errors import WeightsError
from gistjax.model.config import LlamaConfig
from gistjax.weights.families import FAMILIES
from gistjax.weights.loading import check_stored, expected_shapes

log = logging.getLogger(__name__)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

DTYPES = ("F64", "F32", "F16", "BF16")
"""Of tensors that are read, by their names in safetensors files."""

UNUSED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Tensors that say what the config says too; early files have them."""

QUANTIZED = ("quantization_config", "quantization", "compression_config")
UNQUANTIZED = (
    "gistjax reads bf16, fp16, fp32 and fp64 safetensors, and GGUF files: give the unquantised "
    "model or a GGUF of it."
)


def read_config(folder: Path) -> LlamaConfig:
    """Return the base's sizes.

    Raises:
        WeightsError: if `config.json` is missing or damaged, or names what gistjax does not run; or
            if an adapter lies in the folder.
    """
    hf = _read_json(folder / "config.json")
    if any(hf.get(key) is not None for key in QUANTIZED):
        raise WeightsError(f"{folder} holds quantised weights; {UNQUANTIZED}")
    if (folder / ADAPTER).exists():
        raise WeightsError(
            f"{folder} holds an adapter beside the model ({ADAPTER}), which gistjax does not "
            "apply: merge it into the weights, or move it away."
        )
    read = FAMILIES.get(str(hf.get("model_type")), LlamaConfig.from_hugging_face)
    try:
        return read(hf)
    except WeightsError as error:
        raise WeightsError(f"{folder / 'config.json'}: {error}") from error


class SafetensorsReader:
    """Tensors of a folder, read one by one.

    Args:
        config: says which tensors there have to be, and whether embedding and output are one.

    Raises:
        WeightsError: if the folder has no weights, or a shard is missing or damaged; if a tensor is
            missing, has no place in the model or a dtype that is not read; or if two tensors that
            should be one differ.
    """

    def __init__(self, folder: Path, config: LlamaConfig):
        self._file_of: dict[str, Any] = {}
        path_of: dict[str, Path] = {}
        for path in _files(folder):
            file = _open(path)
            for name in file.keys():  # noqa: SIM118
                if name in path_of:
                    raise WeightsError(f"{name} stands in both {path_of[name]} and {path}.")
                path_of[name], self._file_of[name] = path, file
        _check_index(folder, path_of)
        self._stored_as = _roles(self._file_of)
        if config.tie_embeddings and EMBEDDING not in self._stored_as and OUTPUT in self._file_of:
            self._stored_as[EMBEDDING] = self._stored_as.pop(OUTPUT)  # which is the same matrix
        try:
            self._check_tensors(config)
            self._check_tied(config)
        except WeightsError as error:
            raise WeightsError(f"{folder}: {error}") from error

    def tensor(self, name: str) -> np.ndarray:
        """Return one tensor, in the dtype of the file."""
        try:
            stored = self._stored_as[name]
            array: np.ndarray = self._file_of[stored].get_tensor(stored)
        except (SafetensorError, TypeError, ValueError, OSError) as error:
            raise WeightsError(f"cannot read {name} ({error}).") from error
        return array

    def _check_tensors(self, config: LlamaConfig) -> None:
        """Refuse tensors that are missing, of another model, or of a dtype that is not read."""
        stored = {}
        for role, name in self._stored_as.items():
            tensor = self._file_of[name].get_slice(name)
            if tensor.get_dtype() not in DTYPES:
                raise WeightsError(
                    f"{name} has the dtype {tensor.get_dtype()}, and config.json names no "
                    f"quantisation that would say what it means; {UNQUANTIZED}"
                )
            if not UNUSED.fullmatch(role):
                stored[role] = tuple(tensor.get_shape())
        if config.tie_embeddings:
            stored.pop(OUTPUT, None)
        check_stored(stored, expected_shapes(config))

    def _check_tied(self, config: LlamaConfig) -> None:
        """Refuse an output matrix that should be the embedding, and is another."""
        both = config.tie_embeddings and OUTPUT in self._stored_as
        if both and not np.array_equal(self.tensor(OUTPUT), self.tensor(EMBEDDING)):
            raise WeightsError(
                f"config.json says that {OUTPUT} is {EMBEDDING} "
                "(tie_word_embeddings), but they differ. If both are right, set "
                "tie_word_embeddings to false; else take the wrong one out of the file."
            )


def _roles(names: Iterable[str]) -> dict[str, str]:
    """Return the stored name of each tensor by its name in a whole model.

    A model that was saved without its head has no `model.` before its names.
    """
    stored = {name: name for name in names}
    if "norm.weight" not in stored or "model.norm.weight" in stored:
        return stored
    return {name if name == OUTPUT else f"model.{name}": name for name in stored}


def _files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: the single one, else the shards of the index.

    Transformers looks for them in the same order.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        if index.exists():
            log.warning("warning: %s is read; %s beside it and its shards are not", single, INDEX)
        return [single]
    if not index.is_file():
        raise WeightsError(
            f"{folder} has neither {SINGLE} nor {INDEX}: is it a model folder? PyTorch's .bin and "
            ".pth files are not read; save the model as safetensors."
        )
    return sorted({folder / file for file in _weight_map(index).values()})


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index} has no weight_map: fetch the file again.")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise WeightsError(f"{index} names {file!r}, which is not a file beside it.")
    return weight_map


def _check_index(folder: Path, path_of: Mapping[str, Path]) -> None:
    """Refuse shards that do not hold what their index says."""
    if (folder / SINGLE).is_file():
        return
    for name, file in _weight_map(folder / INDEX).items():
        if path_of.get(name) != folder / file:
            raise WeightsError(f"{folder / file} lacks {name}, which {INDEX} says is in it.")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: fetch the model's other shards.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or cut short ({error}): fetch it again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: is {path.parent} a model folder?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} does not hold a JSON object.")
    return content
