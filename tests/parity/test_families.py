"""Each family's logits, greedy continuations and their probability against transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.config import CompressionConfig, LoraConfig, ModelConfig
from gistjax.runtime.sharding import one_device
from gistjax.weights.registry import load_base, resolve
from tests.helpers.families import OWN, V, torch_model, write_gguf
from tests.helpers.lazy import torch
from tests.helpers.tiny import Compiled, all_logits

pytestmark = pytest.mark.slow
ROWS, LENGTH, NEW = 20, 40, 12


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("smollm3", {"no_rope_layers": [0, 1, 1, 0]}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    ],
)
def test_what_a_config_says_of_positions_is_done(family, own, tmp_path, rng):
    model = torch_model(family, **own)
    model.save_pretrained(tmp_path)
    ids = rng.integers(2, V, (ROWS, LENGTH))
    config = ModelConfig(name="local", path=str(tmp_path), dtype="float32")
    base = load_base(resolve(config), config, one_device())
    assert_close(all_logits(base, ids, [LENGTH] * ROWS), logits_of(model, ids))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", OWN)
def test_folder_and_gguf_are_the_model_of_transformers(family, tied, tmp_path, rng):
    model = torch_model(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    write_gguf(model, tmp_path / "m.gguf")
    ids = rng.integers(2, V, (ROWS, LENGTH))
    expected, continued = logits_of(model, ids), continuations(model, ids)
    own = {"head_dim": OWN[family]["head_dim"]} if "head_dim" in OWN[family] else {}
    if family != "smollm3":  # which transformers does not read from GGUF
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="m.gguf", dtype="float32", **own
        )  # which reads no key_length
        assert_close(logits_of(theirs, ids), expected)
    for path in (tmp_path, tmp_path / "m.gguf"):
        config = ModelConfig(name="local", path=str(path), dtype="float32", scan_layers=True)
        base = load_base(resolve(config), config, one_device())
        assert (base.output is None) == tied
        assert_close(all_logits(base, ids, [LENGTH] * ROWS), expected)
        found = our_continuations(base, ids)
        assert [upto_end(row) for row in found.ids_BxA.tolist()] == continued
        sums = log_probabilities(model, ids, found.ids_BxA)
        np.testing.assert_allclose(found.log_probability_B, sums, atol=2e-4)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def continuations(model, ids):
    """Greedy ones, each up to its end token."""
    found = model.generate(torch.tensor(ids), max_new_tokens=NEW, do_sample=False)
    return [upto_end(row) for row in found[:, LENGTH:].tolist()]


def upto_end(row):
    return row[: row.index(0)] if 0 in row else row


def log_probabilities(model, ids, answers):
    """Of each answer given its question, up to the token that ends it, that one included."""
    with torch.no_grad():
        logits = model(torch.tensor(np.concatenate([ids, answers], axis=1))).logits
    tokens = torch.log_softmax(logits[:, LENGTH - 1 : -1], dim=-1).numpy()
    chosen = np.take_along_axis(tokens, answers[..., None], axis=-1)[..., 0]
    ends = [len(upto_end(row)) + 1 for row in answers.tolist()]
    return [row[:end].sum() for row, end in zip(chosen, ends, strict=True)]


def our_continuations(base, ids):
    config = CompressionConfig(architecture="closed_book", lora=LoraConfig(rank=0))
    compiled = Compiled(CompressedLM(base, config, jax.random.key(0)))
    no_context = jnp.zeros((ROWS, 1), jnp.int32), jnp.ones(ROWS, jnp.int32)
    memory = compiled.in_sequence(jnp.zeros(0, jnp.int32), *no_context)
    found = compiled.written(memory, jnp.array(ids), jnp.full(ROWS, LENGTH), NEW, 0)
    return jax.device_get(found)


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
