"""Logits and greedy continuations against the Llama of transformers, in PyTorch and fp32.

In one file, so that one worker reads SmolLM2 for both.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.config import CompressionConfig, LoraConfig, MeshConfig, ModelConfig
from gistjax.runtime.sharding import make_mesh
from gistjax.weights.registry import load_base, resolve
from tests.helpers.lazy import torch
from tests.helpers.tiny import Compiled, all_logits

pytestmark = pytest.mark.slow

ROPE_31 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
SUBJECTS = ["the tides", "a steam engine", "Mount Fuji", "bread", "the violin", "chess", "glass",
            "the Silk Road", "photosynthesis", "a prime number"]  # fmt: skip
PROMPTS = [f"Explain {subject} in one sentence." for subject in SUBJECTS] + [
    f"The most surprising thing about {subject} is" for subject in SUBJECTS
]
NEW = 16


def torch_llama(**changes):
    settings = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_parameters": ROPE_31, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(
                1 + 0.1 * torch.randn_like(weight) if "norm" in name
                else torch.randn_like(weight) / weight.shape[1] ** 0.5
            )  # fmt: skip
    return model


def assert_same_logits(base, model, ids, lengths):
    """Every row against torch run on that row alone, without padding."""
    logits = all_logits(base, ids, lengths)
    for row, length, found in zip(ids, lengths, logits, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor(row[None, :length])).logits[0].numpy()
        scale = np.abs(expected).max()
        assert np.abs(found[:length] - expected).max() <= 1e-4 * scale


@pytest.mark.parametrize(
    ("changes", "shard"),
    [
        ({"tie_word_embeddings": False}, "5GB"),
        ({"tie_word_embeddings": True}, "5GB"),
        ({"tie_word_embeddings": False}, "100KB"),
        ({"head_dim": 32}, "5GB"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "5GB"),
        ({"num_key_value_heads": 4}, "5GB"),
    ],
    ids=["untied", "tied", "sharded", "wide heads", "plain rope", "no grouping"],
)
def test_random_llama_through_safetensors(changes, shard, tmp_path, rng):
    model = torch_llama(**changes)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "100KB")
    config = ModelConfig(name="local", path=str(tmp_path), dtype="float32")
    base = load_base(resolve(config), config, make_mesh(MeshConfig()))
    ids = rng.integers(0, 97, (3, 150))  # beyond the original 64 positions
    assert_same_logits(base, model, ids, [150, 67, 1])


def test_config_written_by_older_transformers(tmp_path, rng):
    """`rope_theta` and `rope_scaling` apart, as in the published Llama 3.1 files."""
    model = torch_llama()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    path.write_text(json.dumps(config))
    settings = ModelConfig(name="local", path=str(tmp_path), dtype="float32")
    base = load_base(resolve(settings), settings, make_mesh(MeshConfig()))
    assert_same_logits(base, model, rng.integers(0, 97, (1, 100)), [100])


def test_smollm2_logits(smollm2, torch_smollm2, their_tokenizer, rng):
    model, tokenizer = torch_smollm2, their_tokenizer
    text = (
        "In 1887 the harbour of Tromsø burned down; 36 houses were lost. Who rebuilt it, and why?"
    )
    ids = np.array(tokenizer(text).input_ids)
    rows = np.stack([ids, np.roll(ids, 7), rng.integers(0, 49152, len(ids))])
    assert_same_logits(smollm2, model, rows, [len(ids), 11, len(ids)])


def test_continuations_are_equal_on_20_prompts(smollm2, torch_smollm2, their_tokenizer):
    model, tokenizer = torch_smollm2, their_tokenizer
    config = CompressionConfig(architecture="closed_book", lora=LoraConfig(rank=0))
    encoded = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    longest = max(map(len, encoded))
    tokens = np.zeros((len(encoded), longest), np.int32)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    lengths = jnp.array([len(ids) for ids in encoded])
    compiled = Compiled(CompressedLM(smollm2, config, jax.random.key(0)))
    no_context = jnp.zeros((len(encoded), 1), jnp.int32), jnp.ones(len(encoded), jnp.int32)
    end = tokenizer.eos_token_id
    memory = compiled.in_sequence(jnp.zeros(0, jnp.int32), *no_context)
    found = compiled.greedy(memory, jnp.array(tokens), lengths, NEW, end)
    padded = tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        theirs = model.generate(
            **padded, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=end
        )[:, longest:]
    for ours, row in zip(np.asarray(found).tolist(), theirs.tolist(), strict=True):
        length = row.index(end) + 1 if end in row else NEW
        assert ours[:length] == row[:length]
