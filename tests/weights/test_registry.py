import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.compress.parameters import abstract_model, parameter_counts
from gistjax.config import MeshConfig, ModelConfig
from gistjax.data.prompts import make_prompt
from gistjax.errors import WeightsError
from gistjax.model.layer import Layer
from gistjax.runtime.sharding import make_mesh
from gistjax.weights import registry
from gistjax.weights.registry import KNOWN, base_hash, load_base, resolve
from gistjax.weights.tokenizers import byte_tokenizer

COUNTS = {
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "llama-3.2-3b-instruct": 3_212_749_824,
    "llama-2-7b": 6_738_415_616,
    "mistral-7b-instruct-v0.3": 7_248_023_552,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b-instruct": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}
"""Parameters as published, tied embeddings counted once."""


@pytest.mark.parametrize("name", COUNTS)
def test_known_sizes(name):
    from gistjax.config import CompressionConfig

    model = abstract_model(CompressionConfig(architecture="none"), KNOWN[name].config)
    assert parameter_counts(model)["base"] == COUNTS[name]


@pytest.mark.slow
def test_random_weights_depend_on_the_seed_alone():
    model = ModelConfig(name="tiny-random", dtype="float32")
    source = resolve(model)
    one, again, other = (
        base_hash(load_base(source, model, make_mesh(mesh), seed))
        for mesh, seed in ((MeshConfig(), 0), (MeshConfig(data=1, fsdp=8), 0), (MeshConfig(), 1))
    )
    assert one == again != other


def test_the_hash_sees_every_byte():
    model = ModelConfig(name="tiny-random", dtype="float32", scan_layers=True)
    base = load_base(resolve(model), model, make_mesh(MeshConfig()))
    before = base_hash(base)
    base.layers.down[...] = base.layers.down[...].at[1, 2, 3].add(1e-6)
    assert base_hash(base) != before


def test_unknown_names_get_a_hint():
    with pytest.raises(WeightsError, match="llama-3.1-8b-instruct"):
        resolve(ModelConfig(name="llama-3.1-8b-instuct"))


def test_a_path_that_is_nothing(tmp_path):
    with pytest.raises(WeightsError, match="neither a folder nor a .gguf file"):
        resolve(ModelConfig(path=str(tmp_path / "none")))


def test_an_offline_hub_says_what_to_do():
    with pytest.raises(WeightsError, match=r"--config\.model\.path=FOLDER"):
        resolve(ModelConfig(name="llama-3.2-1b-instruct"))


@pytest.mark.parametrize(
    ("error", "says"),
    [("GatedRepoError", "accept its licence"), ("RepositoryNotFoundError", "check the name")],
)
def test_hub_refusals_say_what_to_do(error, says, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_, **__):
        kind = getattr(errors, error)
        raise kind.__new__(kind)  # its constructor wants a response of the HTTP library in use

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError, match=says):
        resolve(ModelConfig(name="llama-3.2-1b-instruct"))


def test_dry_runs_need_no_hub():
    source = resolve(ModelConfig(name="llama-3.1-8b-instruct"), offline=True)
    assert (source.kind, source.config.n_layers) == ("hub", 32)


def test_an_unknown_model_is_not_fetched_for_a_dry_run(monkeypatch):
    import huggingface_hub

    asked = []

    def not_there(repo, local_files_only, **_):
        asked.append(local_files_only)
        raise huggingface_hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_there)
    with pytest.raises(WeightsError, match="me/llama is not in the hub's cache"):
        resolve(ModelConfig(name="me/llama"), offline=True)
    assert asked == [True]


def test_source_descriptions_name_no_local_folder(tmp_path):
    source = registry.Source("gguf", "x", KNOWN["tiny-random"].config, tmp_path / "m.gguf")
    assert source.describe() == "gguf: m.gguf"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_byte_tokenizer_round_trip(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_byte_tokenizer_has_a_prompt():
    prompt = make_prompt(byte_tokenizer())
    assert prompt.end_id == 2
    assert max(prompt.prefix_ids) < KNOWN["tiny-random"].config.vocab_size


def test_layers_and_remat_follow_the_config():
    bases = []
    for scan in (True, False):
        model = ModelConfig(name="tiny-random", scan_layers=scan, remat=True)
        base = load_base(resolve(model), model, make_mesh(MeshConfig()))
        assert isinstance(base.layers, Layer) == scan and base.execution.remat
        assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(base))
        bases.append(base)
    assert base_hash(bases[0]) == base_hash(bases[1])
