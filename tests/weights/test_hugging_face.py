import json
import shutil

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gistjax.config import MeshConfig, ModelConfig
from gistjax.errors import WeightsError
from gistjax.runtime.sharding import make_mesh
from gistjax.weights.loading import NAMES
from gistjax.weights.registry import KNOWN, base_hash, load_base, resolve
from tests.helpers.tiny import projections

TINY = KNOWN["tiny-random"].config
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The random tiny model as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("model")
    base = load(path_or_random="random")
    tensors = {}
    parts = projections(base)
    for leaf, name in NAMES.items():
        part = leaf.removeprefix("layers/")
        array = np.asarray(parts[part] if part in parts else get(base, leaf))
        if "{}" in name:
            for layer, one in enumerate(array):
                tensors[name.format(layer)] = np.ascontiguousarray(one.T)
        else:
            tensors[name] = array
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(HF))
    return path


def get(base, leaf):
    for part in leaf.split("/"):
        base = getattr(base, part)
    return base[...]


REPLICATED = MeshConfig()


def load(path_or_random, mesh=REPLICATED, dtype="float32", scan=True):
    model = ModelConfig(
        name="tiny-random" if path_or_random == "random" else "x",
        path=str(path_or_random),
        dtype=dtype,
        scan_layers=scan,
    )
    return load_base(resolve(model), model, make_mesh(mesh))


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=1, fsdp=8), MeshConfig(tensor=2)])
def test_what_was_written_is_read_in_every_layout(folder, mesh):
    random, read = load("random", mesh), load(folder, mesh)
    assert base_hash(read) == base_hash(random)
    chex.assert_trees_all_equal(nnx.state(read), nnx.state(random))
    shardings = [jax.tree.map(lambda x: x.sharding, nnx.state(b)) for b in (read, random)]
    assert jax.tree.leaves(shardings[0]) == jax.tree.leaves(shardings[1])
    if mesh.fsdp == 8:
        assert get(read, "layers/qkv").addressable_shards[0].data.shape == (2, 8, 2, 4, 16)


def test_layers_one_by_one_are_the_stacked_ones(folder):
    stacked, listed = load(folder), load(folder, scan=False)
    assert len(listed.layers) == 2
    assert base_hash(stacked) == base_hash(listed)


def test_dtype_is_the_configured_one(folder):
    base = load(folder, dtype="bfloat16")
    assert {
        leaf.dtype.name
        for leaf in jax.tree.leaves(jax.tree.map(lambda x: x, get(base, "layers/qkv")))
    } == {"bfloat16"}
    np.testing.assert_allclose(
        np.asarray(get(base, "embedding"), np.float32),
        np.asarray(get(load(folder), "embedding")),
        rtol=1e-2,
    )


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(copy, change):
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")


def test_a_missing_tensor_is_named(copy):
    rewrite(copy, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


def test_a_wrong_shape_is_named(copy):
    rewrite(copy, lambda t: t.update({"model.norm.weight": np.ones(63, np.float32)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight has shape \(63,\).*\(64,\)"):
        load(copy)


def test_tensors_that_nobody_asked_for_are_ignored(copy):
    rewrite(copy, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}))
    assert base_hash(load(copy)) == base_hash(load("random"))


def write_index(copy, weight_map):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_missing_shard_is_named(copy):
    write_index(copy, {"model.norm.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(WeightsError, match="model-00002-of-00002.safetensors is missing"):
        load(copy)


def test_an_index_that_names_what_is_not_there(copy):
    write_index(copy, {"nothing": "model.safetensors"})
    with pytest.raises(WeightsError, match="lacks nothing"):
        load(copy)


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "a/b.safetensors", 7])
def test_an_index_cannot_lead_out_of_its_folder(copy, file):
    write_index(copy, {"model.norm.weight": file})
    with pytest.raises(WeightsError, match="not a file beside it"):
        load(copy)


def test_quantised_folders_are_refused(copy):
    (copy / "config.json").write_text(json.dumps({**HF, "quantization_config": {"bits": 4}}))
    with pytest.raises(WeightsError, match="quantised"):
        load(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "llama"}', "\x00\x01"])
def test_damaged_config(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(WeightsError):
        load(copy)


def test_empty_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        load(tmp_path)


@given(st.floats(0, 0.999))
@settings(max_examples=15)
def test_a_file_cut_anywhere_is_an_error_that_names_it(folder, tmp_path_factory, share):
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("cut") / "copy")
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load(copy)
