"""Small GGUF files, written by the gguf package."""

import gguf
import numpy as np

D, F, L, V = 64, 128, 2, 9
ALONE = {
    "model.embed_tokens.weight": ("token_embd.weight", (V, D)),
    "model.norm.weight": ("output_norm.weight", (D,)),
    "lm_head.weight": ("output.weight", (V, D)),
}
OF_A_LAYER = {
    "self_attn.q_proj": ("attn_q", (64, D)),
    "self_attn.k_proj": ("attn_k", (32, D)),
    "self_attn.v_proj": ("attn_v", (32, D)),
    "self_attn.o_proj": ("attn_output", (D, 64)),
    "mlp.gate_proj": ("ffn_gate", (F, D)),
    "mlp.up_proj": ("ffn_up", (F, D)),
    "mlp.down_proj": ("ffn_down", (D, F)),
    "input_layernorm": ("attn_norm", (D,)),
    "post_attention_layernorm": ("ffn_norm", (D,)),
}
TENSORS = ALONE | {
    f"model.layers.{layer}.{name}.weight": (f"blk.{layer}.{theirs}.weight", shape)
    for layer in range(L)
    for name, (theirs, shape) in OF_A_LAYER.items()
}
"""Hugging Face name to GGUF name and shape."""


def interleave(weight, heads):
    """What llama.cpp's converter does to queries and keys."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(path, architecture="llama", quantize=None, extra=(), tensors=(), vocabulary=None, **meta):
    """A tiny Llama; returns the tensors that should come out, by Hugging Face name.

    Args:
        quantize: type of its matrices.
        extra: further metadata, by name.
        tensors: further tensors, by name.
        vocabulary: arguments of `add_vocabulary`.
        meta: sizes, under `llama.`.
    """
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {
        "block_count": L, "context_length": 99, "embedding_length": D, "feed_forward_length": F,
        "attention.head_count": 4, "attention.head_count_kv": 2, **meta,
    }  # fmt: skip
    floats = {"rope.freq_base": 5e5, "attention.layer_norm_rms_epsilon": 1e-5}
    entries = {f"llama.{key}": value for key, value in (sizes | floats).items()} | dict(extra)
    for key, value in entries.items():
        add(writer, key, value)
    more = add_vocabulary(writer, **vocabulary or {})
    expected = {}
    for name, (theirs, shape) in TENSORS.items():
        if shape[0] == V:
            shape = (V + more, D)
        expected[name] = weight = rng.normal(size=shape).astype(np.float32)
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
        stored = interleave(weight, heads) if heads else weight
        kind = quantize if len(shape) == 2 else None
        data = stored if kind is None else gguf.quants.quantize(stored, kind)
        writer.add_tensor(theirs, data, raw_dtype=kind)
    for name, array in dict(tensors).items():
        writer.add_tensor(name, np.asarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def add(writer, key, value):
    """An entry of the type that its value has."""
    kinds = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)


def add_vocabulary(writer, pre="smollm", tokens=(), kind=1):
    """Nine tokens and others, of which there may be another kind; returns how many others."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<|end|>", "a", "b", "c", "ab", "Ġ", "1", "2", "12", *tokens])
    writer.add_token_types([3, *[1] * 8, *[kind] * len(tokens)])
    writer.add_token_merges(["a b", "1 2"])
    writer.add_eos_token_id(0)
    return len(tokens)
