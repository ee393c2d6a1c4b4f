"""Files of each kind as they should be, and how each kind is read; `hostile_cases` breaks them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from gistjax.compare import read_predictions
from gistjax.compress.parameters import export_trainable, import_trainable, start_from
from gistjax.config import DataConfig, ModelConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.prompts import make_prompt
from gistjax.data.report import DataReport
from gistjax.data.text import load_articles
from gistjax.errors import GistjaxError
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.sharding import one_device
from gistjax.sweep import read_sweep
from gistjax.training.checkpoint import Checkpointer
from gistjax.weights.registry import load_base, resolve
from gistjax.weights.tokenizers import byte_tokenizer, load_tokenizer

D, L, V = 32, 2, 12
SIZES = {
    "self_attn.q_proj": (D, D), "self_attn.k_proj": (D // 2, D), "self_attn.v_proj": (D // 2, D),
    "self_attn.o_proj": (D, D), "mlp.gate_proj": (D, D), "mlp.up_proj": (D, D), "mlp.down_proj": (D, D),
    "input_layernorm": (D,), "post_attention_layernorm": (D,),
}  # fmt: skip
PIECES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
HF = {
    "model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": D, "num_hidden_layers": L,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 99,
}  # fmt: skip
TRAINABLE = {"lora": {"a": jnp.ones((4, 4)), "b": jnp.ones(4)}}


def tensors() -> dict[str, np.ndarray]:
    """A tiny Llama under Hugging Face names."""
    shapes = {
        "model.embed_tokens.weight": (V, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (V, D),
    }
    for layer in range(L):
        shapes |= {f"model.layers.{layer}.{piece}.weight": shape for piece, shape in SIZES.items()}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def make_weights(folder: Path) -> None:
    save_file(tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(HF))


def read_weights(folder: Path) -> object:
    model = ModelConfig(name="tiny", path=str(folder), dtype="float32", scan_layers=True)
    return load_base(resolve(model), model, one_device())


def make_gguf(folder: Path) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for key, value in {
        "block_count": L, "context_length": 99, "embedding_length": D, "feed_forward_length": D,
        "attention.head_count": 4, "attention.head_count_kv": 2,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", "a", "b", "c", "ab", "Ġ", "1", "2", "12", "d", "e", "f"])
    writer.add_token_types([3, *[1] * (V - 1)])
    writer.add_token_merges(["a b", "1 2"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, array in tensors().items():
        name = name.removesuffix(".weight")
        if name in top:
            writer.add_tensor(f"{top[name]}.weight", array)
        else:
            _, _, layer, piece = name.split(".", 3)
            writer.add_tensor(f"blk.{layer}.{PIECES[piece]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(folder: Path) -> object:
    model = ModelConfig(name="tiny", path=str(folder / "model.gguf"), dtype="float32")
    source = resolve(model)
    load_tokenizer(source)
    return load_base(source, model, one_device())


def make_tokenizer(folder: Path) -> None:
    make_weights(folder)
    byte_tokenizer().save_pretrained(folder)


def read_tokenizer(folder: Path) -> object:
    return make_prompt(load_tokenizer(resolve(ModelConfig(name="tiny", path=str(folder)))))


def make_compressor(folder: Path) -> None:
    export_trainable(
        TRAINABLE, folder / "compressor.safetensors", {"config": '{"architecture": "gist"}'}
    )


def read_compressor(folder: Path) -> object:
    start_from(folder, TRAINABLE, "gist")
    return import_trainable(folder / "compressor.safetensors", TRAINABLE)


def make_checkpoint(folder: Path) -> None:
    with Checkpointer(folder / "checkpoint") as checkpointer:
        checkpointer.save(3, TRAINABLE)  # type: ignore[arg-type]


def read_checkpoint(folder: Path) -> object:
    with Checkpointer(folder / "checkpoint") as checkpointer:
        if checkpointer.latest_step is None:
            raise GistjaxError(f"no step in {folder}")
        return checkpointer.restore(TRAINABLE)  # type: ignore[arg-type]


def make_questions(folder: Path) -> None:
    question = {"id": "a", "question": "Who?", "answers": [{"text": "cat"}]}
    content = {"data": [{"title": "T", "paragraphs": [{"context": "The cat.", "qas": [question]}]}]}
    for split in ("train", "validation"):
        (folder / f"{split}.json").write_text(json.dumps(content))


def read_questions(folder: Path) -> object:
    return load_dataset(DataConfig(path=str(folder)), 0)


def make_text(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"paragraphs": ["one"]}\n'))


def read_text(folder: Path) -> object:
    return list(load_articles(str(folder), DataReport(), 0.5))


def make_run(folder: Path) -> None:
    (folder / "config.json").write_text('{"config": {"seed": 1}}')
    (folder / "predictions.json").write_text('[{"id": "a", "context_id": 0, "f1": 1, "em": 1}]')
    (folder / "sweep.json").write_text('{"runs": [{"name": "a", "config": "x.py"}]}')


def read_run(folder: Path) -> object:
    return (
        RunDir(folder).config(),
        read_predictions(folder),
        read_sweep(folder / "sweep.json", folder, []),
    )


Do = Callable[[Path], object]
KINDS: dict[str, tuple[Do, Do]] = {
    "weights": (make_weights, read_weights), "gguf": (make_gguf, read_gguf),
    "tokenizer": (make_tokenizer, read_tokenizer), "compressor": (make_compressor, read_compressor),
    "checkpoint": (make_checkpoint, read_checkpoint), "questions": (make_questions, read_questions),
    "text": (make_text, read_text), "run": (make_run, read_run),
}  # fmt: skip
