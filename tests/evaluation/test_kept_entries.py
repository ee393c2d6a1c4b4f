"""Where entries are kept: counts by hand, from masks and from a model's own contexts."""

import dataclasses

import numpy as np
import pytest

from gistjax.compress.parameters import split_model
from gistjax.config import MeshConfig, ModelConfig, SelectConfig
from gistjax.data.example import Buckets, TokenizedExample
from gistjax.evaluation.generate import Generator
from gistjax.evaluation.kept_entries import joined_maps, kept_map
from gistjax.runtime.sharding import make_mesh
from gistjax.weights.registry import resolve
from gistjax.weights.tokenizers import load_tokenizer
from tests.helpers.tiny import PREFIX, TINY, Compiled, tiny_base, tiny_model

TEXTS = ("An old bridge.", "Tea is drunk by nearly everybody.", "")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve(ModelConfig(name="tiny-random")))


@pytest.fixture(scope="module")
def contexts(tokenizer):
    question = np.array([5, 6], np.int32)
    ids = [np.array(tokenizer.encode(text, add_special_tokens=False), np.int32) for text in TEXTS]
    return [
        TokenizedExample(c, question, question[:0], 7 + i, i, prefix_ids=tuple(PREFIX.tolist()))
        for i, c in enumerate(ids)
    ]


def test_the_map_by_hand(tokenizer, contexts):
    rng = np.random.default_rng(0)
    kept = [rng.random((3, 2, row.context_length)) < 0.4 for row in contexts]
    found = kept_map(contexts, kept, tokenizer, 2)
    n = [row.context_length for row in contexts]
    assert (found["n"], found["tokens"]) == (3, sum(n))
    counts = sum(mask.sum(2) for mask in kept)
    np.testing.assert_allclose(found["parts"], counts / sum(n), atol=1e-4)
    assert [context["context_id"] for context in found["contexts"]] == [7, 8]
    for context, mask, text in zip(found["contexts"], kept, TEXTS, strict=False):
        assert context["words"] == text.split()
        assert [len(row) for row in context["kept"]] == [
            len(word) + (i > 0) for i, word in enumerate(text.split())
        ], "a token is a byte"
        assert sum(context["kept"], []) == mask.sum((0, 1)).tolist()


def test_contexts_without_a_token_have_no_map(tokenizer, contexts):
    empty, none = contexts[2:], [np.zeros((3, 2, 0), bool)]
    assert kept_map(empty, none, tokenizer, 2) == {} == joined_maps([{}])
    one = kept_map(contexts[:1], [np.ones((3, 2, contexts[0].context_length), bool)], tokenizer, 2)
    assert joined_maps([{}, one]) == one


def test_maps_of_several_tasks_are_weighted_by_tokens():
    one = {"n": 1, "tokens": 10, "parts": [[0.5, 0.0]], "contexts": [{"context_id": 1}]}
    two = {"n": 2, "tokens": 30, "parts": [[0.1, 0.4]], "contexts": [{"context_id": 2}]}
    assert joined_maps([one, {}, two]) == {
        "n": 3,
        "tokens": 40,
        "parts": [[0.2, 0.3]],
        "contexts": [{"context_id": 1}, {"context_id": 2}],
    }
    assert joined_maps([{}, {}]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("scorer, scan", [("knorm", True), ("question_aware", False)])
def test_a_generator_tells_what_it_keeps_of_distinct_contexts(tokenizer, contexts, scorer, scan):
    base = tiny_base(dataclasses.replace(TINY, vocab_size=len(tokenizer)), scan=scan)
    select = SelectConfig(scorer)
    model = tiny_model("select", base=base, target_length=64, ratio=4.0, select=select)
    graphdef, *weights = split_model(model)
    asks = scorer == "question_aware"
    buckets = Buckets((16, 64), (8,))
    generator = Generator(graphdef, make_mesh(MeshConfig()), 2, (1,), 8, buckets, asks)
    rows = [contexts[1], contexts[0], contexts[1]]
    found, kept = generator.kept(*weights, rows)
    assert [row.context_id for row in found] == [8, 7]
    for row, mask in zip(found, kept, strict=True):
        ids, length = row.context_ids[None], np.array([len(row.context_ids)])
        asked = (row.question_ids[None], np.array([2])) if asks else None
        alone = Compiled(model).compress(PREFIX, ids, length, asked=asked).kept
        layers = alone if isinstance(alone, tuple) else None
        masks = [x.mask_BxKxX for x in layers] if layers else alone.mask_BxKxX
        np.testing.assert_array_equal(mask, np.stack(masks)[:, 0])
