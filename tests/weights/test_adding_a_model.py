"""The worked example of CONTRIBUTING: a model known by name, and a family of its own."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from gistjax.config import MeshConfig, ModelConfig
from gistjax.errors import WeightsError
from gistjax.model.masks import causal_mask, lengths_to_valid
from gistjax.runtime.sharding import make_mesh
from gistjax.weights import families, registry
from gistjax.weights.registry import load_base, resolve
from tests.helpers.lazy import torch
from tests.helpers.pages import python_blocks
from tests.helpers.tiny import positions_of

BLOCKS = python_blocks("CONTRIBUTING.md")


@pytest.fixture
def with_seed_oss(monkeypatch):
    """The family of the example, registered for one test."""
    monkeypatch.setitem(families.FAMILIES, "seed_oss", None)  # so that it is taken out again
    exec(BLOCKS["seed_oss"], {})


@pytest.fixture
def seed_oss(tmp_path):
    """A small random Seed-OSS, and the folder that transformers saved it to."""
    torch.manual_seed(0)
    config = transformers.SeedOssConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=256,
    )
    model = transformers.SeedOssForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_a_known_model_takes_one_line(monkeypatch):
    monkeypatch.setattr(registry, "KNOWN", registry.KNOWN | eval(BLOCKS["known"], vars(registry)))
    source = resolve(ModelConfig(name="smollm2-135m"), offline=True)
    assert (source.kind, source.config.d_model, source.config.n_layers) == ("hub", 576, 30)


def test_a_family_of_its_own_gives_the_logits_of_transformers(with_seed_oss, seed_oss):
    model, folder = seed_oss
    config = ModelConfig(name="local", path=str(folder), dtype="float32")
    base = load_base(resolve(config), config, make_mesh(MeshConfig()))
    ids = np.random.default_rng(0).integers(0, 97, (2, 40))
    valid = lengths_to_valid(jnp.array([40, 40]), 40)
    states = base(base.embed(jnp.array(ids)), positions_of(valid), causal_mask(valid))[0]
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    assert np.abs(np.asarray(base.logits(states)) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_what_a_family_does_not_compute_is_refused(with_seed_oss, seed_oss):
    _, folder = seed_oss
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"attention_out_bias": True}))
    with pytest.raises(WeightsError, match=r"config\.json: its attention has other biases"):
        resolve(ModelConfig(name="local", path=str(folder)))


def test_a_family_that_is_not_listed_is_refused(seed_oss):
    _, folder = seed_oss
    with pytest.raises(WeightsError, match="the model type is 'seed_oss'"):
        resolve(ModelConfig(name="local", path=str(folder)))
