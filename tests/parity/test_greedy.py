"""Greedy continuations of the real SmolLM2 against those of transformers in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from gistjax.config import CompressionConfig, LoraConfig
from gistjax.model.compressed_lm import CompressedLM
from gistjax.model.decoding import greedy

SUBJECTS = ["the tides", "a steam engine", "Mount Fuji", "bread", "the violin", "chess", "glass",
            "the Silk Road", "photosynthesis", "a prime number"]  # fmt: skip
PROMPTS = [f"Explain {subject} in one sentence." for subject in SUBJECTS] + [
    f"The most surprising thing about {subject} is" for subject in SUBJECTS
]
NEW = 16


def test_continuations_are_equal_on_20_prompts(smollm2, torch_smollm2):
    model, tokenizer = torch_smollm2
    config = CompressionConfig(architecture="closed_book", lora=LoraConfig(rank=0))
    encoded = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    longest = max(map(len, encoded))
    tokens = np.zeros((len(encoded), longest), np.int32)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    lengths = jnp.array([len(ids) for ids in encoded])
    ours = CompressedLM(smollm2, config, (), jax.random.key(0))
    no_context = jnp.zeros((len(encoded), 1), jnp.int32), jnp.ones(len(encoded), jnp.int32)
    end = tokenizer.eos_token_id
    found = greedy(ours, ours.memory(*no_context), jnp.array(tokens), lengths, NEW, end)
    for ids, row in zip(encoded, np.asarray(found).tolist(), strict=True):
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=0
            )[0, len(ids) :].tolist()
        assert row[: len(theirs)] == theirs
