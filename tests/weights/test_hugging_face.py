import json
import shutil

import chex
import huggingface_hub
import jax
import numpy as np
import pytest
import transformers
from flax import nnx
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gistjax.config import MeshConfig, ModelConfig
from gistjax.data.prompts import make_prompt
from gistjax.errors import WeightsError
from gistjax.runtime.sharding import make_mesh
from gistjax.weights.registry import base_hash, load_base, resolve
from gistjax.weights.tokenizers import BYTE_TEMPLATE, byte_tokenizer, load_tokenizer
from tests.helpers.folders import HF, get, write_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("model"))


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
    with pytest.raises(WeightsError, match=r"lacks the tensor .*1\.mlp\.up_proj\.weight"):
        load(copy)


def test_a_wrong_shape_is_named(copy):
    rewrite(copy, lambda t: t.update({"model.norm.weight": np.ones(63, np.float32)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight has shape \(63,\).*\(64,\)"):
        load(copy)


def test_tensors_that_nobody_asked_for_are_ignored(copy):
    rewrite(copy, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}))
    assert base_hash(load(copy)) == base_hash(load("random"))


def without_prefix(tensors):
    """As `AutoModel.save_pretrained` names them."""
    for name in [name for name in tensors if name.startswith("model.")]:
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def test_names_without_their_prefix_are_the_same_model(copy):
    rewrite(copy, without_prefix)
    assert base_hash(load(copy)) == base_hash(load("random"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("lm_head.weight"), r"lacks the tensor lm_head\.weight"),
        (lambda t: t.update({"model.norm.weight": t["norm.weight"]}), "for which .* no place"),
        (lambda t: t.pop("layers.1.mlp.up_proj.weight"), r"lacks .*1\.mlp\.up_proj\.weight"),
    ],
)
def test_names_without_their_prefix_have_to_be_a_whole_model(copy, change, says):
    rewrite(copy, without_prefix)
    rewrite(copy, change)
    with pytest.raises(WeightsError, match=says):
        load(copy)


INDEX = "model.safetensors.index.json"


def write_index(copy, weight_map):
    (copy / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def shards(copy):
    """The folder with its tensors in two files and an index."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    halves = [{n: a for n, a in tensors.items() if ("layers.1." in n) == i} for i in (False, True)]
    for i, half in enumerate(halves):
        save_file(half, copy / f"model-{i}.safetensors")
    write_index(copy, {name: f"model-{i}.safetensors" for i in (0, 1) for name in halves[i]})
    return copy


def test_shards_are_read_as_the_index_says(shards):
    assert base_hash(load(shards)) == base_hash(load("random"))


def test_a_missing_shard_is_named(shards):
    (shards / "model-1.safetensors").unlink()
    with pytest.raises(WeightsError, match="model-1.safetensors is missing"):
        load(shards)


def test_an_index_that_names_what_is_not_there(shards):
    write_index(shards, {"model.norm.weight": "model-0.safetensors", "none": "model-1.safetensors"})
    with pytest.raises(WeightsError, match=r"model-1\.safetensors lacks none"):
        load(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    tensors = load_file(shards / "model-1.safetensors")
    tensors["model.norm.weight"] = np.full(64, 2, np.float32)
    save_file(tensors, shards / "model-1.safetensors")
    with pytest.raises(WeightsError, match=r"norm\.weight stands in both .*model-0.*model-1"):
        load(shards)


@pytest.mark.parametrize("left", [("model-0.safetensors", "model-1.safetensors"), ()])
def test_a_single_file_is_read_before_older_shards(folder, shards, left, caplog):
    """As transformers does, whether or not the shards are still there."""
    for name in ("model-0.safetensors", "model-1.safetensors"):
        stale = {tensor: array + 1 for tensor, array in load_file(shards / name).items()}
        save_file(stale, shards / name) if name in left else (shards / name).unlink()
    shutil.copy(folder / "model.safetensors", shards)
    assert base_hash(load(shards)) == base_hash(load("random"))
    assert "model.safetensors is read; model.safetensors.index.json beside it" in caplog.text
    theirs = transformers.LlamaForCausalLM.from_pretrained(shards, dtype="float32")
    norm = theirs.model.norm.weight.detach().numpy()
    np.testing.assert_array_equal(
        norm, load_file(folder / "model.safetensors")["model.norm.weight"]
    )


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "a/b.safetensors", 7])
def test_an_index_cannot_lead_out_of_its_folder(shards, file):
    write_index(shards, {"model.norm.weight": file})
    with pytest.raises(WeightsError, match="not a file beside it"):
        load(shards)


EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("kept", [[OUTPUT], [EMBEDDING], [EMBEDDING, OUTPUT]])
def test_tied_weights_are_found_under_either_name(copy, kept):
    """Their numbers are those that transformers reads."""

    def tie(tensors):
        matrix = tensors.pop(OUTPUT)
        tensors.pop(EMBEDDING)
        tensors.update({name: matrix for name in kept})

    rewrite(copy, tie)
    (copy / "config.json").write_text(json.dumps(HF | {"tie_word_embeddings": True}))
    theirs = transformers.LlamaForCausalLM.from_pretrained(copy, dtype="float32")
    read = load(copy)
    assert read.output is None
    for matrix in (theirs.get_input_embeddings(), theirs.get_output_embeddings()):
        np.testing.assert_array_equal(matrix.weight.detach().numpy(), get(read, "embedding"))


def test_tied_weights_that_differ_are_refused(copy):
    """Transformers 4 takes the embedding for both, transformers 5 each for itself."""
    (copy / "config.json").write_text(json.dumps(HF | {"tie_word_embeddings": True}))
    with pytest.raises(WeightsError, match=r"lm_head\.weight is .*embed_tokens.*but they differ"):
        load(copy)


def test_an_output_matrix_that_is_missing_is_not_made_up(copy):
    rewrite(copy, lambda t: t.pop(OUTPUT))
    with pytest.raises(WeightsError, match=r"lacks the tensor lm_head\.weight"):
        load(copy)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.weight_scale_inv",
        "model.layers.0.mlp.up_proj.qweight",
        "model.layers.0.mlp.up_proj.weight.absmax",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.0._orig_module.mlp.up_proj.weight",
        "lm_head.bias",
        "score.weight",
    ],
)
def test_a_tensor_without_a_place_is_refused(copy, name):
    rewrite(copy, lambda t: t.update({name: np.ones(64, np.float32)}))
    with pytest.raises(WeightsError, match=f"tensor {name}, for which this model has no place"):
        load(copy)


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int32"])
def test_dtypes_that_need_scales_are_refused(copy, dtype):
    rewrite(copy, lambda t: t.update({DOWN: np.ones((64, 128), dtype)}))
    with pytest.raises(WeightsError, match=f"{DOWN} has the dtype .*give the unquantised"):
        load(copy)


def test_fp64_is_read(copy):
    rewrite(copy, lambda t: t.update({name: a.astype(np.float64) for name, a in t.items()}))
    assert base_hash(load(copy)) == base_hash(load("random"))


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("float16", np.inf), ("float32", -np.inf), ("bfloat16", np.nan), ("float64", 1e300)],
)
def test_numbers_that_are_not_finite_are_refused(copy, dtype, number):
    array = np.ones((64, 128), dtype)
    array[5, 6] = number
    rewrite(copy, lambda t: t.update({DOWN: array}))
    with pytest.raises(WeightsError, match=rf"{DOWN} \({dtype}\) has numbers that are infinite"):
        load(copy)


@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
def test_quantised_folders_are_refused(copy, key):
    (copy / "config.json").write_text(json.dumps({**HF, key: {"bits": 4}}))
    with pytest.raises(WeightsError, match="quantised"):
        load(copy)
    (copy / "config.json").write_text(json.dumps({**HF, key: None}))
    load(copy)


def test_an_adapter_beside_the_model_is_not_passed_over(copy):
    """Transformers applies it, if PEFT is installed."""
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"adapter_config\.json.*merge it into the weights"):
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


def save_with_template(folder):
    """A tokenizer as transformers 5 saves it: its templates in files of their own."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "A " + BYTE_TEMPLATE, "tool_use": "B"}
    tokenizer.save_pretrained(folder)
    assert (folder / "chat_template.jinja").exists()
    assert (folder / "additional_chat_templates" / "tool_use.jinja").exists()


def test_a_hub_model_has_the_prompt_of_its_folder(copy, tmp_path, monkeypatch):
    """All files are fetched that make the prompt."""
    save_with_template(copy)
    (copy / "pytorch_model.bin").write_bytes(b"")

    def fetch(repo, allow_patterns, local_files_only):
        names = [str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / name, tmp_path / "hub" / name)
        return tmp_path / "hub"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    there = resolve(ModelConfig(name="me/model"))
    here = resolve(ModelConfig(name="me/model", path=str(copy)))
    prompts = [make_prompt(load_tokenizer(source)) for source in (there, here)]
    assert prompts[0].sha256 == prompts[1].sha256
    assert prompts[0].tokenizer.decode(prompts[0].prefix_ids).startswith("A <|im_start|>")
    assert not (tmp_path / "hub" / "pytorch_model.bin").exists()


def test_a_folder_without_a_template_says_so(copy, caplog):
    (copy / "chat_template.jinja").unlink()
    load_tokenizer(resolve(ModelConfig(path=str(copy))))
    assert "copy has no chat template: prompts are plain text" in caplog.text
