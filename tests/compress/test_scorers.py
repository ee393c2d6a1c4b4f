"""Every scorer against its formula in PyTorch, on models of transformers."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress import scorers
from gistjax.compress.scorers import ALWAYS, SCORERS, Reading
from gistjax.compress.select import Selector
from gistjax.compress.spread import keep
from gistjax.config import SCORERS as NAMES
from gistjax.config import CompressionConfig, EncoderConfig, LoraConfig, ModelConfig, SelectConfig
from gistjax.model.layer import Seen
from gistjax.runtime.sharding import one_device
from gistjax.weights.registry import load_base, resolve
from tests.helpers.families import OWN, V, torch_model
from tests.helpers.lazy import torch
from tests.helpers.tiny import TINY, tiny_base
from tests.helpers.torch_scores import scores as reference

PREFIX = [5, 9, 2]
LENGTHS = [61, 40, 17, 33]
SIZE, QUESTION, REPEAT = 64, 11, (7, 8)
WITH_REFERENCE = [name for name in NAMES if name != "random"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks of queries, the last of them not full."""
    monkeypatch.setattr(scorers, "CHUNK", 24)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A family's model by transformers, and the same as a base of ours."""

    @cache
    def load(family):
        model = torch_model(family, attn_implementation="eager")
        path = tmp_path_factory.mktemp(family)
        model.save_pretrained(path)
        scan = family != "smollm3"
        config = ModelConfig(name="local", path=str(path), dtype="float32", scan_layers=scan)
        return model, load_base(resolve(config), config, one_device())

    return load


@pytest.fixture(scope="module")
def contexts():
    """Rows of different lengths, and a question on each, with rubbish in their padding."""
    rng = np.random.default_rng(0)
    ids, tokens = rng.integers(2, V, (4, SIZE)), rng.integers(2, V, (4, QUESTION))
    return jnp.array(ids), jnp.array(LENGTHS), jnp.array(tokens), jnp.array([11, 4, 7, 1])


def selector_of(base, scorer, bidirectional=False, seed=0):
    config = CompressionConfig(
        architecture="select",
        select=SelectConfig(scorer),
        seed=seed,
        encoder=EncoderConfig(bidirectional=bidirectional, lora=LoraConfig(rank=1)),
    )
    selector = Selector(base.config, config, jax.random.key(0))
    selector.repeat_ids = REPEAT
    return selector


def scored(base, scorer, contexts, prefix=PREFIX, **settings):
    """Scores `[L, B, K, C]`."""
    selector = selector_of(base, scorer, **settings)

    @jax.jit
    def read(prefix, ids, lengths, tokens, token_lengths):
        asked = (tokens, token_lengths)
        return selector.read(base, None, prefix, (ids, lengths), asked)[1]

    return np.asarray(read(jnp.array(prefix, jnp.int32), *contexts))


def same_kept(ours, theirs, lengths, ratio):
    """Part of the entries that are kept by ours and by their scores, one budget a KV head."""
    total = jnp.array([ours.shape[0] * ours.shape[2] * -(-n // ratio) for n in lengths])
    a, b = (
        np.asarray(keep(jnp.array(x), jnp.array(lengths), total, "head").kept)
        for x in (ours, theirs)
    )
    return (a & b).sum() / a.sum()


def assert_same_scores(ours, theirs, lengths):
    """Within 1e-4 of the scale of what is not always kept, and of that all."""
    padded = np.zeros_like(ours)
    for row, n in enumerate(lengths):
        expected = theirs[row]
        padded[:, row, :, :n] = expected
        always = expected >= ALWAYS
        found = ours[:, row, :, :n]
        np.testing.assert_array_equal(found >= ALWAYS, always)
        scale = np.abs(expected[~always]).max()
        np.testing.assert_allclose(found[~always], expected[~always], atol=1e-4 * scale, rtol=0)
    for ratio in (2, 8):
        assert same_kept(ours, padded, lengths, ratio) >= 0.99


def references(name, model, contexts, mask=None):
    ids, lengths, tokens, token_lengths = (np.asarray(x) for x in contexts)
    theirs = []
    for row, n in enumerate(lengths):
        context = ids[row, :n].tolist()
        question = tokens[row, : token_lengths[row]].tolist()
        behind = [*REPEAT, *context] if name == "kvzip" else question
        seen = None if mask is None else mask(n)
        theirs.append(reference(name, model, PREFIX, context, behind, seen))
    return theirs


def test_the_config_names_them_all():
    assert list(SCORERS) == list(NAMES)


def families_and_scorers():
    """Llama with each scorer, and each scorer with one other family; the rest only at length."""
    others = [family for family in OWN if family != "llama"]
    for number, name in enumerate(WITH_REFERENCE):
        yield "llama", name
        for family in others:
            meets = family == others[number % len(others)]
            mark = pytest.mark.slow if meets else pytest.mark.long
            yield pytest.param(family, name, marks=mark)


@pytest.mark.parametrize(("family", "name"), families_and_scorers())
def test_scores_and_what_they_keep_are_those_of_the_reference(model_of, contexts, family, name):
    model, base = model_of(family)
    ours = scored(base, name, contexts)
    assert ours.dtype == np.float32 and np.isfinite(ours).all()
    assert_same_scores(ours, references(name, model, contexts), LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kvzip", "h2o", "snapkv", "question_aware", "keydiff"])
def test_a_context_that_sees_itself_whole(model_of, contexts, name):
    model, base = model_of("llama")
    ours = scored(base, name, contexts, bidirectional=True)

    def mask(n):
        P = len(PREFIX)
        sees = torch.ones(P + n, P + n).tril().bool()
        sees[P:, P:] = True
        return sees

    assert_same_scores(ours, references(name, model, contexts, mask), LENGTHS)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_and_short_contexts_are_scored(name):
    base, rng = tiny_base(), np.random.default_rng(1)
    ids, tokens = rng.integers(2, 61, (2, 2, 12)), rng.integers(2, 61, (2, 2, 5))
    lengths, token_lengths = np.array([7, 1]), np.array([3, 1])
    ids[1] = np.where(np.arange(12) < lengths[:, None], ids[0], ids[1])
    tokens[1] = np.where(np.arange(5) < token_lengths[:, None], tokens[0], tokens[1])
    found = [
        scored(base, name, (ids[i], lengths, tokens[i], token_lengths), prefix=[1]) for i in (0, 1)
    ]
    assert np.isfinite(found).all()
    for row, n in enumerate(lengths):
        np.testing.assert_array_equal(*(x[:, row, :, :n] for x in found))


def streamed(prefix, n, budget):
    seen = Seen(*(jnp.zeros((1, prefix + 8, 1, 1)),) * 6, None, None)
    reading = Reading(TINY, prefix, jnp.zeros((1, 8), jnp.int32), jnp.array([n]), 0)
    score = scorers.streaming(reading, jnp.array(0), seen)
    return np.flatnonzero(keep(score[None], jnp.array([n]), jnp.array([budget]), "head").kept)


@pytest.mark.parametrize(
    ("prefix", "kept"), [(0, [0, 1, 2, 3, 5, 6]), (3, [0, 2, 3, 4, 5, 6]), (9, [1, 2, 3, 4, 5, 6])]
)
def test_streaming_keeps_the_first_of_all_tokens_and_the_last(prefix, kept):
    assert streamed(prefix, 7, 6).tolist() == kept


def test_a_draw_knows_seed_layer_head_place_and_content_alone():
    base, rng = tiny_base(), np.random.default_rng(2)
    ids = rng.integers(2, 61, (3, 30))
    ids[2, :20] = ids[0, :20]
    rest = jnp.zeros((3, 1), jnp.int32), jnp.ones(3, jnp.int32)

    def draw(ids, lengths, seed=0):
        rows = [x[: len(ids)] for x in rest]
        return scored(base, "random", (jnp.array(ids), jnp.array(lengths), *rows), seed=seed)

    first = draw(ids, [20, 30, 20])
    assert first.min() >= 0 and first.max() < 1 and 0.4 < first.mean() < 0.6
    assert len(np.unique(first[:, :2])) > 0.99 * first[:, :2].size  # layers, heads, places differ
    np.testing.assert_array_equal(first[:, 0, :, :20], first[:, 2, :, :20])
    np.testing.assert_array_equal(draw(ids[:1, :20], [20])[:, 0], first[:, 0, :, :20])
    assert (draw(ids, [20, 30, 20], seed=1) != first).mean() > 0.99
    other = ids.copy()
    other[0, 3], other[1, [4, 5]] = 1, ids[1, [5, 4]]
    assert (draw(other, [20, 30, 20])[:, :2] != first[:, :2]).mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_fp32_of_any_base(name):
    base = tiny_base(dtype="bfloat16")
    shapes = (jnp.zeros((2, 6), jnp.int32), jnp.ones(2, jnp.int32)) * 2
    read = partial(selector_of(base, name).read, base, None)

    def score(prefix, contexts):
        return read(prefix, contexts[:2], contexts[2:])[1]

    found = jax.eval_shape(score, jnp.zeros(3, jnp.int32), shapes)
    assert found.shape == (3, 2, 2, 6) and found.dtype == jnp.float32


def sizes(jaxpr):
    """Numbers in every array that a program makes, those of its loops included."""
    for equation in jaxpr.eqns:
        yield from (var.aval.size for var in equation.outvars)
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize("masked", [False, True])
def test_probabilities_are_never_made_for_all_queries(masked):
    B, T, K, G, H = 2, 200, 2, 3, 4
    q, k = jnp.zeros((B, T, K, G, H)), jnp.zeros((B, T, K, H))
    mask = jnp.ones((B, T, T), bool) if masked else None
    seen = Seen(jnp.zeros((B, T, 1)), q, k, q, k, k, None, mask)
    program = jax.make_jaxpr(partial(scorers.attended, how="max"))(seen, jnp.ones((B, T), bool))
    most = max(size for size in sizes(program.jaxpr) if size != B * T * T)
    assert most == B * K * G * scorers.CHUNK * T
