"""What a GGUF file may say, and what is refused by its name."""

import numpy as np
import pytest

from gistjax.errors import WeightsError
from gistjax.weights.gguf_file import GgufReader
from tests.helpers.gguf_files import D, V, write


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scale_linear", 4.0),
        ("llama.rope.scaling.type", "linear"),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.rope.scaling.attn_factor", 2.0),
        ("llama.rope.dimension_count", 8),
        ("llama.rope.dimension_sections", [4, 4, 4, 4]),
        ("llama.attention.value_length", 8),
        ("llama.attention.sliding_window", 64),
        ("llama.attention.scale", 0.5),
        ("llama.attention.causal", False),
        ("llama.attention.layer_norm_epsilon", 1e-5),
        ("llama.logit_scale", 0.5),
        ("llama.embedding_scale", 12.0),
        ("llama.residual_scale", 0.2),
        ("llama.attn_logit_softcapping", 30.0),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.expert_count", 8),
        ("llama.vocab_size", 8),
        ("llama.tensor_data_layout", "other"),
        ("llama.something_new", 1),
        ("tokenizer.ggml.add_space_prefix", True),
        ("tokenizer.ggml.precompiled_charsmap", [1, 2]),
        ("tokenizer.ggml.remove_extra_whitespaces", True),
        ("tokenizer.ggml.add_sep_token", True),
        ("tokenizer.ggml.ignore_merges", True),
        ("tokenizer.huggingface.json", "{}"),
        ("adapter.type", "lora"),
    ],
)
def test_an_entry_that_may_change_numbers_is_refused_by_name(key, value, tmp_path):
    write(tmp_path / "m.gguf", extra={key: value})
    with pytest.raises(WeightsError, match=rf"m\.gguf: it has .*{key}="):
        GgufReader(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("attention.head_count", 3, "3 heads, and it has no head_dim|do not divide"),
        ("attention.head_count_kv", 3, "4 query heads do not divide by its 3"),
        ("attention.key_length", 15, "15 numbers, which is odd"),
        ("block_count", 0, "0 as llama.block_count"),
        ("block_count", 3, "lacks the tensor blk.2"),
        ("block_count", 1, "tensor blk.1.*no place"),
    ],
)
def test_sizes_that_cannot_be_are_refused(key, value, says, tmp_path):
    write(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(WeightsError, match=says):
        GgufReader(tmp_path / "m.gguf")


def test_entries_that_say_what_is_so_anyway_are_passed_over(tmp_path):
    write(tmp_path / "m.gguf")
    plain = GgufReader(tmp_path / "m.gguf").config
    extra = {
        "general.type": "model", "general.name": "x", "quantize.imatrix.file": "y",
        "split.count": 1, "llama.vocab_size": V, "llama.rope.dimension_count": 16,
        "llama.attention.value_length": 16,
        "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0,
        "llama.rope.scaling.original_context_length": 64, "llama.attention.causal": True,
        "tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template.tool_use": "z", "mradermacher.quantize_version": 2,
        "tokenizer.ggml.add_padding_token": False,
    }  # fmt: skip
    write(tmp_path / "n.gguf", extra=extra, **{"attention.key_length": 16})
    assert GgufReader(tmp_path / "n.gguf").config == plain


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.0.attn_rot_embd", "output.bias",
        "blk.0.ffn_gate_inp.weight", "blk.0.attn_q.weight.lora_a", "rope_factors_long.weight",
    ],
)  # fmt: skip
def test_a_tensor_without_a_place_is_refused(name, tmp_path):
    write(tmp_path / "m.gguf", tensors={name: np.ones(D, np.float32)})
    with pytest.raises(WeightsError, match=f"it has a tensor {name}, for which this model has no"):
        GgufReader(tmp_path / "m.gguf")


def test_one_of_several_files_is_refused(tmp_path):
    write(tmp_path / "m.gguf", extra={"split.no": 0, "split.count": 2, "split.tensors.count": 21})
    with pytest.raises(WeightsError, match="one of 2 files .*--merge"):
        GgufReader(tmp_path / "m.gguf")
