"""Scorers that are trained: their formulas, their two teachers, and that training and use agree."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from gistjax.compress.learned import TYPICAL, WINDOW
from gistjax.compress.rounded import round_rows
from gistjax.compress.scorers import SCORERS, Reading
from gistjax.compress.select import read_in, second_pass
from gistjax.compress.taught import FLOOR, learn
from gistjax.config import LEARNED, EncoderConfig, LoraConfig, SelectConfig
from gistjax.model.attention import MOST_ABOVE, attend_gated, attend_kept, product
from gistjax.model.kv_cache import CacheLayer, KeptLayer
from gistjax.model.layer import Seen
from gistjax.model.lora import Trainable
from tests.helpers.tiny import PREFIX, TINY, Compiled, in_turn, tiny_base, tiny_inputs, tiny_model

P, C = len(PREFIX), 16
HEADS = TINY.n_layers * TINY.n_kv_heads
REPEAT = (7, 8)


def model_of(scorer, scan=True, **changes):
    select = SelectConfig(scorer, warmup=changes.pop("warmup", 0.15))
    encoder = EncoderConfig(bidirectional=changes.pop("bidirectional", False))
    model = tiny_model(
        "select", base=tiny_base(scan=scan), select=select, encoder=encoder, ratio=4.0, **changes
    )
    model.selector.repeat_ids = REPEAT
    return model


def seen_of(rng):
    """What one layer sees of prompt and context, random, fp32."""
    T, K, G, H = P + C, TINY.n_kv_heads, TINY.n_heads // TINY.n_kv_heads, TINY.head_dim
    draw = lambda *shape: jnp.asarray(rng.normal(size=(3, T, *shape)), jnp.float32)  # noqa: E731
    keys, queries = draw(K, H), draw(K, G, H)
    return Seen(draw(TINY.d_model), queries, keys, queries, keys, draw(K, H), None, None)


def score_by_torch(scorer, w, seen, lengths):
    """Scores `[B, K, C]` by PyTorch's own layers, row by row."""
    w = {name: torch.from_numpy(np.array(x)) for name, x in w.items()}
    rows = []
    for row, n in enumerate(lengths):
        if scorer == "cross_attention":
            k = torch.from_numpy(np.array(seen.unrotated_k_BxTxKxH))[row, P : P + n]
            share = torch.einsum("jkh,ckh->kjc", w["queries"], k).log_softmax(-1)
            found = share.amax(1) * w["scale"][:, None] + w["shift"][:, None]
        else:
            h = torch.from_numpy(np.array(seen.h_BxTxD))[row, : P + n] @ w["project"]
            if scorer == "conv":
                kernel = w["filters"].T[:, None]
                h = torch.nn.functional.conv1d(
                    h.T[None], kernel, padding=WINDOW // 2, groups=len(kernel)
                )[0].T
            found = (torch.nn.functional.silu(h) @ w["out"] + w["shift"])[P:].T
        rows.append(found.numpy())
    return rows


@pytest.mark.parametrize("scorer", ["conv", "pooling", "cross_attention"])
def test_scores_are_those_of_pytorch(rng, scorer):
    from gistjax.compress.learned import LEARNED as scorers

    seen, lengths = seen_of(rng), [16, 9, 1]
    weights = {name: x[...][1] for name, x in model_of(scorer).selector.learned.items()}
    weights = {name: x + 0.1 * rng.normal(size=x.shape) for name, x in weights.items()}
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
    reading = Reading(TINY, P, jnp.zeros((3, C), jnp.int32), jnp.array(lengths), 0)
    ours = scorers[scorer].score(reading, weights, seen)
    for row, theirs in enumerate(score_by_torch(scorer, weights, seen, lengths)):
        np.testing.assert_allclose(ours[row, :, : lengths[row]], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_gist_tokens_score_as_the_tokens_whose_embeddings_they_are(rng, scan):
    model = model_of("gist", scan)
    ids, lengths, *_ = inputs = tiny_inputs(rng, C=C)
    words = jnp.asarray(rng.integers(2, 60, len(model.selector.gists)))
    model.selector.gists[...] = model.base.embed(words)
    cache, ours = read(model, inputs)
    reading = Reading(TINY, P, ids, lengths, 0)
    gists = jnp.broadcast_to(model.selector.gists[...], (3, *model.selector.gists.shape))
    asked = gists, jnp.full(3, len(words))
    kvzip = second_pass(model.base, model.lora, cache, reading, asked, SCORERS["kvzip"])
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(
            ours[:, row, :, :n], np.log(kvzip[:, row, :, :n]), atol=1e-4, rtol=1e-4
        )


@partial(jax.jit, static_argnums=0)
def _learn(graphdef, trainable, others, ids, lengths, ratio, chooses):
    model = nnx.merge(graphdef, trainable, others)
    context = ids, lengths
    return learn(model.selector, model.base, model.lora, PREFIX, context, ratio, chooses)


def learned(model, inputs, ratio, chooses):
    """What `learn` gives."""
    return _learn(*nnx.split(model, Trainable, ...), *inputs[:2], ratio, chooses)


@partial(jax.jit, static_argnums=0)
def _slopes(graphdef, trainable, *rest):
    def sums(trainable):
        taught, error_E = _learn(graphdef, trainable, *rest)
        gates = sum(jnp.sum(layer.gate_BxKxX) for layer in _layers(taught.kept))
        return jnp.sum(error_E), gates

    _, back = jax.vjp(sums, trainable)
    return back((1.0, 0.0))[0], back((0.0, 1.0))[0]


def slopes(model, inputs, ratio, chooses):
    """Gradients of the error of `learn`, and of the sum of its gates."""
    return _slopes(*nnx.split(model, Trainable, ...), *inputs[:2], ratio, chooses)


@partial(jax.jit, static_argnums=0)
def _read(graphdef, state, ids, lengths):
    model = nnx.merge(graphdef, state)
    return model.selector.read(model.base, model.lora, PREFIX, (ids, lengths))


def read(model, inputs):
    """The cache of contexts, and their scores."""
    return _read(*nnx.split(model), *inputs[:2])


def _layers(kept):
    return kept if isinstance(kept, tuple) else [kept]


def norms(gradients):
    """Greatest gradient of each parameter, by name."""
    flat = jax.tree_util.tree_leaves_with_path(gradients)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    return {n: float(jnp.max(jnp.abs(g))) for n, (_, g) in zip(names, flat, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("scorer", LEARNED)
def test_the_teachers_reach_the_scorer_and_nothing_else(rng, scorer):
    model = model_of(scorer, bidirectional=True, lora=LoraConfig(rank=2, alpha=2.0))
    of_error, of_gates = slopes(model, tiny_inputs(rng), jnp.full(6, 4.0), False)
    for gradients in (norms(of_error), norms(of_gates)):
        for name, most in gradients.items():
            assert (most > 0) == name.startswith("selector/"), (name, most)


def test_gates_are_closed_to_the_loss_while_kvzip_chooses_or_all_is_kept(rng):
    inputs = tiny_inputs(rng)
    for ratio, chooses in ((4.0, True), (1.0, False)):
        _, of_gates = slopes(model_of("conv"), inputs, jnp.full(3, ratio), chooses)
        assert set(norms(of_gates).values()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize(("scorer", "scan"), in_turn(LEARNED, (True, False)))
def test_what_is_kept_in_training_is_kept_in_use(rng, scorer, scan):
    ids, lengths, *_ = inputs = tiny_inputs(rng)
    model, ratios = model_of(scorer, scan), np.array([2.0, 8.0] * 3, np.float32)
    taught, _ = learned(model, inputs, jnp.asarray(ratios), False)
    for column in range(2):
        used = Compiled(model).compress(PREFIX, ids, lengths, ratios[column])
        for ours, theirs in zip(_layers(taught.kept), _layers(used.kept), strict=True):
            rows = (slice(None),) * scan + (slice(column, None, 2),)
            np.testing.assert_array_equal(ours.mask_BxKxX[rows], theirs.mask_BxKxX)
            np.testing.assert_array_equal(ours.gate_BxKxX[rows], theirs.mask_BxKxX)


def test_kvzip_chooses_first_and_teaches_its_logarithm(rng):
    ids, lengths, *_ = inputs = tiny_inputs(rng)
    model = model_of("conv")
    by_kvzip = model_of("kvzip")
    taught, error_E = learned(model, inputs, jnp.full(3, 4.0), True)
    used = Compiled(by_kvzip).compress(PREFIX, ids, lengths)
    np.testing.assert_array_equal(taught.kept.mask_BxKxX, used.kept.mask_BxKxX)
    score, kvzip = read(model, inputs)[1], read(by_kvzip, inputs)[1]
    for row, n in enumerate(lengths):
        wanted = np.maximum(np.log(kvzip[:, row, :, :n]), FLOOR)
        by_hand = np.mean((score[:, row, :, :n] - wanted) ** 2)
        np.testing.assert_allclose(error_E[row], by_hand, rtol=1e-4)


def test_kvzip_reads_contexts_only_where_it_teaches(rng, monkeypatch):
    """Without it the same is kept, and has the same gradients."""
    inputs, losses = tiny_inputs(rng), {"teacher_forcing": 1.0, "kvzip": 1.0}
    assert not model_of("kvzip", loss_weights={"teacher_forcing": 1.0}).selector.kvzip_teaches
    teaches = model_of("conv", warmup=0.0, loss_weights=losses)
    assert model_of("conv").selector.kvzip_teaches and teaches.selector.kvzip_teaches
    rest = inputs, jnp.full(3, 4.0), False
    (kept, error_E), (_, of_gates) = learned(teaches, *rest), slopes(teaches, *rest)
    monkeypatch.setattr("gistjax.compress.taught.log_kvzip", None)
    alone = model_of("conv", warmup=0.0)
    (alone_kept, no_error_E), (_, alone_of_gates) = learned(alone, *rest), slopes(alone, *rest)
    chex.assert_trees_all_close((alone_kept, alone_of_gates), (kept, of_gates), rtol=1e-6)
    assert error_E.min() > 0 and not no_error_E.any()


def test_scores_begin_at_a_typical_value(rng):
    _, score = read(model_of("pooling"), tiny_inputs(rng))
    assert abs(float(jnp.mean(score)) - TYPICAL) < 0.1


@pytest.mark.slow
def test_questions_read_what_is_left_at_their_own_ratio(rng):
    """Two rows a context, at two ratios: each as if it stood alone."""
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of("conv", lora=LoraConfig(rank=0))
    ratios = np.array([2.0, 8.0] * 3, np.float32)
    taught, _ = learned(model, (ids, lengths), jnp.asarray(ratios), False)
    rows = np.repeat(tokens, 2, axis=0), np.repeat(token_lengths, 2)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), rows[0].shape)
    state = Compiled(model).prefill(taught, tokens.shape[1]).repeat(2)
    both, _ = Compiled(model).append(rows[0], state, positions, rows[1])
    for column in range(2):
        used = Compiled(model).compress(PREFIX, ids, lengths, ratios[column])
        alone = Compiled(model).states(used, tokens, token_lengths)
        for row, n in enumerate(token_lengths):
            np.testing.assert_allclose(
                both[2 * row + column, :n], alone[row, :n], atol=2e-5, rtol=2e-4
            )


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_questions_read_what_is_left_in_their_own_bits(rng, scan):
    """Five rows a context, at a ratio and in bits of their own: each as if read from its file."""
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of("conv", scan, lora=LoraConfig(rank=0))
    columns = [(2.0, 8), (4.0, 4), (2.0, 3), (8.0, 2), (4.0, 16)]
    ratios, bits = (np.tile(np.array(x), 3) for x in zip(*columns, strict=True))
    taught, *_ = learned(model, (ids, lengths), jnp.asarray(ratios, jnp.float32), False)
    rows = np.repeat(tokens, 5, axis=0), np.repeat(token_lengths, 5)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), rows[0].shape)
    read = read_in(taught, jnp.asarray(bits, jnp.int32))
    state = Compiled(model).prefill(read, tokens.shape[1]).repeat(5)
    together, _ = Compiled(model).append(rows[0], state, positions, rows[1])
    for column, (ratio, width) in enumerate(columns):
        used = jax.device_get(Compiled(model).compress(PREFIX, ids, lengths, np.float32(ratio)))
        if width < 16:
            used, _ = round_rows(used, width, 3)
        alone = Compiled(model).states(used, tokens, token_lengths)
        for row, n in enumerate(token_lengths):
            ours = together[5 * row + column, :n]
            np.testing.assert_allclose(ours, alone[row, :n], atol=2e-5, rtol=2e-4)


def test_gates_are_factors_of_exponentials(rng):
    """One query head on three entries of the cache and six kept ones, of which some are closed."""
    q, k, v = (jnp.asarray(rng.normal(size=(1, n, 4)), jnp.float32) for n in (1, 9, 9))
    k = k.at[0, 8].set(40.0 * q[0, 0])  # far above all that is kept
    mask, values = jnp.asarray([1, 0, 1, 1, 0, 0], bool), jnp.asarray(rng.normal(size=4))

    def read(gate, attend=attend_gated):
        own = CacheLayer(k[None, :, :3], v[None, :, :3], 0)
        kept = KeptLayer(k[None, :, 3:], v[None, :, 3:], mask[None, None], gate)
        return attend(q[:, :, None], own, jnp.ones((1, 1, 3), bool), kept)[0, 0, 0]

    gate = mask.astype(jnp.float32)[None, None]
    np.testing.assert_allclose(read(gate), read(None, attend_kept), rtol=1e-5)
    slope = jax.grad(lambda g: read(g) @ values)(gate)[0, 0]
    logits = np.asarray(q[0, 0] @ k[0].T) / 2
    seen = np.concatenate([np.ones(3), mask])
    top = logits[seen > 0].max()
    e = np.exp(np.minimum(logits - top, MOST_ABOVE))
    total = (e * seen).sum()
    y = (e * seen) @ np.asarray(v[0]) / total
    by_hand = e[3:] * ((np.asarray(v[0, 3:]) - y) @ np.asarray(values)) / total
    np.testing.assert_allclose(slope, by_hand, rtol=1e-4)
    assert logits[8] - top > MOST_ABOVE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_of_a_product_are_those_of_an_einsum(rng, dtype):
    x, y = (jnp.asarray(rng.normal(size=(2, 3, 4)), dtype) for _ in range(2))
    ours, theirs = (
        jax.grad(lambda x, y, f=f: jnp.sum(jnp.sin(f("bij,bkj->bik", x, y))), (0, 1))(x, y)
        for f in (product, jnp.einsum)
    )
    chex.assert_trees_all_equal_dtypes(ours, theirs)
    chex.assert_trees_all_close(ours, theirs, rtol=0.05 if dtype == "bfloat16" else 1e-5, atol=0.02)


@pytest.mark.parametrize("scorer", LEARNED)
def test_scorers_begin_alike_whatever_the_seed(scorer):
    """The mean of runs of other seeds is one of runs with the same start."""
    one, other = (nnx.state(model_of(scorer, seed=seed).selector, Trainable) for seed in (1, 2))
    chex.assert_trees_all_equal(one, other)
    assert jax.tree.leaves(one)


def test_what_is_trained_is_in_the_model_by_name():
    learned = {
        scorer: set(dict(nnx.to_flat_state(nnx.state(model_of(scorer).selector, Trainable))))
        for scorer in ("conv", "gist")
    }
    names = ("filters", "out", "project", "shift")
    assert learned["conv"] == {("learned", name) for name in names}
    assert learned["gist"] == {("gists",), ("learned", "scale"), ("learned", "shift")}
