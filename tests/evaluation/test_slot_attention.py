import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.architectures import find_architecture
from gistjax.compress.layers import standardize
from gistjax.compress.parameters import split_model
from gistjax.config import ARCHITECTURES, MeshConfig, ModelConfig
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.evaluation.slot_attention import slot_attention, split_words
from gistjax.runtime.sharding import make_mesh
from gistjax.weights.registry import resolve
from gistjax.weights.tokenizers import load_tokenizer
from tests.helpers.tiny import TINY, tiny_base, tiny_model

M, C = 4, 16


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve(ModelConfig(name="tiny-random")))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mark"])
def test_weights_of_a_slot_sum_to_one_over_real_tokens(name, rng):
    architecture = find_architecture(name)(TINY, M, C // M, jax.random.key(0))
    states = jnp.array(rng.normal(size=(3, C, 32)), jnp.float32)
    length, used = jnp.array([16, 7, 2]), jnp.array([4, 4, 2])
    weights = np.asarray(architecture.weights(states, length, used, M))
    assert weights.shape == (3, M, C) and weights.dtype == np.float32
    for row, n, slots in zip(weights, [16, 7, 2], [4, 4, 2], strict=True):
        np.testing.assert_allclose(row[:slots].sum(axis=1), 1, rtol=1e-5)
        assert (row[:slots, n:] == 0).all() and (row >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pooling", "mean_pool", "conv"])
def test_local_architectures_read_what_moves_their_slots(name, rng):
    """A token has a part in a slot exactly where the slot's gradient says so."""
    architecture = find_architecture(name)(TINY, M, C // M, jax.random.key(0))
    states = jnp.array(rng.normal(size=(1, C, 32)), jnp.float32)
    arguments = jnp.array([13]), jnp.array([M]), M
    jacobian = jax.jacobian(lambda x: architecture(x, *arguments)[0].sum(-1))(states)
    moved = np.abs(np.asarray(jacobian))[:, 0].sum(-1) > 1e-7
    np.testing.assert_array_equal(
        np.asarray(architecture.weights(states, *arguments))[0] > 0, moved
    )


@pytest.mark.slow
def test_attention_weights_are_those_that_attention_uses(rng):
    """With one head and values that are the states themselves, what is read is the weights' mean of
    the states.
    """
    architecture = find_architecture("cross_attention")(
        dataclasses.replace(TINY, n_heads=1), M, C // M, jax.random.key(0)
    )
    architecture.attention.value[...] = architecture.attention.out[...] = jnp.eye(32)
    states = jnp.array(rng.normal(size=(1, C, 32)), jnp.float32)
    arguments = jnp.array([13]), jnp.array([M]), M
    weights_MxC = np.asarray(architecture.weights(states, *arguments))[0]
    assert weights_MxC.max() > 2 / 13, "not all alike"
    read_MxD = architecture.read(states, *arguments)[0] - architecture.queries[...]
    np.testing.assert_allclose(read_MxD, weights_MxC @ standardize(states[0]), atol=1e-5)


def test_words_of_a_text(tokenizer):
    text = "In 1066, the Normans\nwon at  Hastings."
    ids = tokenizer.encode(text, add_special_tokens=False)
    words, starts = split_words(tokenizer, ids)
    assert "".join(words).replace(" ", "") == "".join(text.split())
    assert len(words) == len(starts) and starts[0] == 0 and len(words) < len(ids)


def test_of_some_contexts_each_word_has_its_part_in_each_slot(tokenizer):
    texts = ["The first context tells of one thing.", "The second of another."] * 2
    rows = [
        TokenizedExample(
            np.array(tokenizer.encode(text), np.int32), np.array([1]), np.array([]), 5 + i % 2, i
        )
        for i, text in enumerate(texts)
    ]
    base = tiny_base(dataclasses.replace(TINY, vocab_size=len(tokenizer)))
    mesh = make_mesh(MeshConfig())

    def read_by(name):
        return slot_attention(
            *split_model(tiny_model(name, base=base, ratio=16.0)),
            rows,
            tokenizer,
            mesh,
            contexts=3,
            buckets=Buckets((64,), (8,)),
        )

    found = read_by("pooling")
    assert [context["context_id"] for context in found] == [5, 6]
    for context, text, slots in zip(found, texts, (3, 2), strict=False):
        weights = np.array(context["weights"])
        assert weights.shape == (slots, len(context["words"]))
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=0.01)
        assert "".join(context["words"]).replace(" ", "").endswith(text.replace(" ", ""))
    assert not read_by("mark"), "an architecture that reads nothing has no part to show"
