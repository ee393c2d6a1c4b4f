"""Entries that are kept: the decoder reads the cache without the others, packed or masked."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.compress.context import soft_context
from gistjax.compress.decoding import continue_greedily
from gistjax.compress.kept import Entries, entries_of, join_kept, packed
from gistjax.compress.rounded import coded_entries, round_entries
from gistjax.compress.select import read_joined
from gistjax.compress.spread import PROFILE_RATIOS
from gistjax.config import SCORERS, EncoderConfig, LoraConfig, ModelConfig, SelectConfig
from gistjax.errors import ConfigError
from tests.helpers.tiny import PREFIX, TINY, Compiled, tiny_base, tiny_inputs, tiny_model

OWN = EncoderConfig(kind="lora", lora=LoraConfig(rank=2, alpha=2.0))
HEADS = TINY.n_layers * TINY.n_kv_heads


def model_of(scorer="keydiff", spread="all", scan=True, **changes):
    select = SelectConfig(scorer, spread, bytes=changes.pop("bytes", 0))
    changes = {"target_length": 16, "ratio": 4.0, **changes}
    model = tiny_model("select", base=tiny_base(scan=scan), select=select, **changes)
    if spread == "profile":
        shape = (TINY.n_layers, TINY.n_kv_heads, 1)
        parts = np.random.default_rng(0).uniform(0.02, 1, shape) ** np.log2(PROFILE_RATIOS)
        model.selector.profile[...] = jnp.asarray(parts, jnp.float32)
    return model


def counts(context):
    """Entries of each row, layer and KV head `[B, L, K]`."""
    kept, several = context.kept, isinstance(context.kept, tuple)
    masks = [layer.mask_BxKxX for layer in kept] if several else kept.mask_BxKxX
    return np.swapaxes(np.stack(masks).sum(-1), 0, 1)


def rows_of(context, row):
    """One row of a context, as numpy arrays."""
    axis = 0 if isinstance(context.kept, tuple) else 1
    kept = jax.tree.map(lambda x: np.take(x, [row], axis), context.kept)
    others = dataclasses.replace(context, kept=None, prefix_ids_P=jnp.zeros(row + 1))
    one = jax.tree.map(lambda x: np.asarray(x)[row : row + 1], others)
    return dataclasses.replace(one, kept=kept, prefix_ids_P=context.prefix_ids_P)


@pytest.mark.parametrize("scan", [True, False])
def test_all_kept_is_the_full_context(rng, scan):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model, full = model_of(scan=scan, ratio=1.0), tiny_model("none", base=tiny_base(scan=scan))
    kept = Compiled(model).compress(PREFIX, ids, lengths)
    whole = Compiled(full).compress(PREFIX, ids, lengths)
    ours = Compiled(model).states(kept, tokens, token_lengths)
    theirs = Compiled(full).states(whole, tokens, token_lengths)
    for row, n in enumerate(token_lengths):
        np.testing.assert_allclose(ours[row, :n], theirs[row, :n], atol=2e-5)


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_keeps_the_budget(rng, scorer):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of(scorer)
    asked = (tokens, token_lengths) if scorer == "question_aware" else None
    context = Compiled(model).compress(PREFIX, ids, lengths, asked=asked)
    np.testing.assert_array_equal(context.slots_B, [4, 3, 1])
    np.testing.assert_array_equal(counts(context).sum((1, 2)), HEADS * np.array([4, 3, 1]))
    assert context.in_cache and context.size == 0
    chex.assert_tree_all_finite(Compiled(model).states(context, tokens, token_lengths))


@pytest.mark.parametrize("spread", ["head", "layer", "all", "profile"])
def test_spreads(rng, spread):
    ids, lengths, *_ = tiny_inputs(rng)
    context = Compiled(model_of(spread=spread)).compress(PREFIX, ids, lengths)
    n = counts(context)
    np.testing.assert_array_equal(n.sum((1, 2)), HEADS * np.array([4, 3, 1]))
    same = {"head": n[:, :, :1], "layer": n.sum(2, keepdims=True) / 2}.get(spread, n)
    assert (same == same[:, :1]).all() == (spread in ("head", "layer"))


def test_budget_in_bytes(rng):
    ids, lengths, *_ = tiny_inputs(rng)
    entry = 2 * TINY.head_dim * 4
    float32 = ModelConfig(dtype="float32")
    model = model_of(bytes=21 * entry + 5, ratio=0.0, model=float32)
    context = Compiled(model).compress(PREFIX, ids, lengths)
    np.testing.assert_array_equal(counts(context).sum((1, 2)), [21, 21, 18])


def test_a_budget_of_less_than_an_entry_is_refused():
    entry = 2 * TINY.head_dim * 4
    model_of(bytes=entry, ratio=0.0, model=ModelConfig(dtype="float32"))
    with pytest.raises(ConfigError, match=f"takes {entry} bytes"):
        model_of(bytes=entry - 1, ratio=0.0, model=ModelConfig(dtype="float32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spread", "scan"),
    [
        pytest.param(spread, scan, marks=() if scan == (spread == "all") else pytest.mark.long)
        for spread in ("layer", "all", "profile")
        for scan in (True, False)
    ],
)
def test_packed_entries_answer_as_masked_ones(rng, spread, scan):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of(spread=spread, scan=scan)
    context = Compiled(model).compress(PREFIX, ids, lengths)
    for row in range(3):
        masked = rows_of(context, row)
        entries = entries_of(masked)
        small = dataclasses.replace(masked, kept=packed(entries))
        assert entries.k_TxH.shape == (int(entries.count_LxK.sum()), TINY.head_dim)
        np.testing.assert_array_equal(entries_of(small).k_TxH, entries.k_TxH)
        one, n = tokens[row : row + 1], token_lengths[row : row + 1]
        ours, theirs = (Compiled(model).states(c, one, n) for c in (small, masked))
        np.testing.assert_allclose(ours[0, : int(n[0])], theirs[0, : int(n[0])], atol=1e-5)
        answers = [Compiled(model).greedy(c, one, n, 4, 60) for c in (small, masked)]
        np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("scan", [True, False])
def test_several_questions_read_one_packed_context(rng, scan):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = Compiled(model_of(scan=scan))
    masked = rows_of(model.compress(PREFIX, ids, lengths), 0)
    small = dataclasses.replace(masked, kept=packed(entries_of(masked)))
    last = token_lengths[:, None] - 1
    states = []
    for context in (small, masked):
        state = model.prefill(context, 16).repeat(3)
        h_3x1xD, state = model.append(tokens, state, last, token_lengths)
        again_3x1xD, _ = model.decode_step(tokens[:, :1], state, 0)
        states.append((h_3x1xD, again_3x1xD))
    chex.assert_trees_all_close(*states, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_entries_in_few_bits_are_read_as_restored_ones_and_unpacked_layer_by_layer(rng, scan):
    """Several questions; in 3 bits, whose codes lie across bytes. No program holds all layers."""
    base = tiny_base(dataclasses.replace(TINY, n_layers=8, head_dim=64), scan=scan)
    model = tiny_model("select", base=base, select=SelectConfig("knorm"))
    count_LxK = rng.integers(400, 513, (8, TINY.n_kv_heads)).astype(np.int32)
    count_LxK[1, 1] = 0
    k, v = rng.normal(size=(2, count_LxK.sum(), 64)).astype(np.float32)
    coded = coded_entries(round_entries(Entries(k, v, count_LxK), 3), 3, "float32")
    nothing, row = soft_context(PREFIX, jnp.zeros((1, 0, TINY.d_model)), jnp.zeros(1)), [512]
    *_, tokens, lengths = tiny_inputs(rng)
    graphdef, weights = nnx.split(model)

    @jax.jit
    def written(weights, kept):
        model = nnx.merge(graphdef, weights)
        context = dataclasses.replace(nothing, kept=kept, length_B=jnp.array(row))
        state = model.prefill(context, 12).repeat(3)
        h_3x1xD, state = model.append(tokens, state, lengths[:, None] - 1, lengths)
        return continue_greedily(model, h_3x1xD[:, 0], state, 4, 60)

    ours, theirs = (written(weights, packed(entries)) for entries in (coded, coded.numbers()))
    np.testing.assert_array_equal(ours.ids_BxA, theirs.ids_BxA)
    chex.assert_trees_all_close(ours.log_probability_B, theirs.log_probability_B, rtol=1e-5)
    assert len(np.unique(ours.ids_BxA)) > 3
    held = written.lower(weights, packed(coded)).compile().memory_analysis().temp_size_in_bytes
    assert held < (k.nbytes + v.nbytes) / 2


@pytest.mark.slow
def test_what_is_thrown_away_is_not_read(rng):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of()
    context = Compiled(model).compress(PREFIX, ids, lengths)
    kept = context.kept

    def read(k, v):
        changed = dataclasses.replace(context, kept=dataclasses.replace(kept, k=k, v=v))
        return model.states(changed, tokens, token_lengths)

    gradients = jax.jit(jax.grad(lambda k, v: jnp.sum(jnp.sin(read(k, v))), (0, 1)))(kept.k, kept.v)
    for gradient in gradients:
        np.testing.assert_array_equal(jnp.where(kept.mask_BxKxX[..., None], 0, gradient), 0)
        assert (jnp.abs(gradient).max(-1) > 0)[kept.mask_BxKxX].mean() > 0.9


JOINED = np.array([[0, 2, 1], [1, -1, -1], [2, 0, -1]], np.int32)
"""Contexts that the questions on each of three read."""


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_questions_on_several_contexts_read_what_is_joined_of_them(rng, scan):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = Compiled(model_of(scan=scan))
    contexts = model.compress(PREFIX, ids, lengths)
    ours = model.states(read_joined(contexts, jnp.asarray(JOINED)), tokens, token_lengths)
    for row, joined in enumerate(JOINED):
        parts = join_kept([rows_of(contexts, place) for place in joined if place >= 0])
        n = int(token_lengths[row])
        one = tokens[row : row + 1], token_lengths[row : row + 1]
        theirs = model.states(parts, *one)
        chex.assert_trees_all_close(ours[row, :n], theirs[0, :n], atol=1e-5)


@pytest.mark.slow
def test_what_a_question_does_not_read_of_others_has_no_gradient(rng):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of()
    contexts = Compiled(model).compress(PREFIX, ids, lengths)

    def read(k, gate):
        kept = dataclasses.replace(contexts.kept, k=k, gate_BxKxX=gate)
        joined = read_joined(dataclasses.replace(contexts, kept=kept), jnp.asarray(JOINED))
        return jnp.sum(jnp.sin(model.states(joined, tokens, token_lengths)[1]))

    gate = contexts.kept.mask_BxKxX.astype(jnp.float32)
    for gradient in jax.jit(jax.grad(read, (0, 1)))(contexts.kept.k, gate):
        rows = np.abs(np.asarray(gradient)).reshape(len(gradient), 3, -1).max((0, 2))
        assert rows[1] > 0 and rows[0] == rows[2] == 0  # the second reads its own alone


@pytest.mark.slow
def test_rows_alone_and_padding_change_nothing(rng):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of("kvzip")
    together = Compiled(model).compress(PREFIX, ids, lengths)
    for row, n in enumerate(np.asarray(lengths)):
        padded = jnp.pad(ids[row : row + 1, :n], ((0, 0), (0, 20 - n)), constant_values=7)
        alone = Compiled(model).compress(PREFIX, padded, lengths[row : row + 1])
        ours, theirs = (entries_of(c) for c in (rows_of(alone, 0), rows_of(together, row)))
        np.testing.assert_array_equal(ours.count_LxK, theirs.count_LxK)
        np.testing.assert_allclose(ours.v_TxH, theirs.v_TxH, atol=1e-5)


def test_an_adapter_of_its_own_reads_the_context(rng):
    ids, lengths, *_ = tiny_inputs(rng)
    shared = Compiled(model_of()).compress(PREFIX, ids, lengths)
    model = model_of(encoder=OWN)
    own = Compiled(model).compress(PREFIX, ids, lengths)
    assert not np.allclose(own.kept.v, shared.kept.v)
    model.lora = None
    alone = Compiled(model).compress(PREFIX, ids, lengths)
    np.testing.assert_array_equal(alone.kept.v, own.kept.v)


def test_a_bidirectional_encoder_sees_what_comes_later(rng):
    ids, lengths, *_ = tiny_inputs(rng)
    changed = ids.at[:, 2].add(1)
    for bidirectional in (False, True):
        encoder = dataclasses.replace(OWN, bidirectional=bidirectional)
        model = Compiled(model_of(encoder=encoder))
        before, after = (model.compress(PREFIX, x % 61, lengths).kept.v for x in (ids, changed))
        assert np.allclose(before[:, :, :, :2], after[:, :, :, :2], atol=1e-6) != bidirectional
        assert not np.allclose(before[:, :, :, 2:3], after[:, :, :, 2:3], atol=1e-6)


def test_a_question_has_to_be_known(rng):
    ids, lengths, *_ = tiny_inputs(rng)
    with pytest.raises(ConfigError, match="evaluate"):
        model_of("question_aware").compress(PREFIX, ids, lengths)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_rows_that_share_entries_read_them_through_masks_of_their_own(rng, scan):
    ids, lengths, tokens, token_lengths = tiny_inputs(rng)
    model = model_of(scan=scan)
    cuts = [Compiled(model).compress(PREFIX, ids, lengths, jnp.full(3, r)) for r in (2.0, 8.0)]

    def interleaved(*rows):
        return jnp.stack(rows, 1).reshape(2 * len(rows[0]), *rows[0].shape[1:])

    def shared(layer, other):
        axis = 1 if scan else 0
        masks = jnp.stack([layer.mask_BxKxX, other.mask_BxKxX], axis + 1)
        shape = (*masks.shape[:axis], -1, *masks.shape[axis + 2 :])
        return dataclasses.replace(layer, mask_BxKxX=masks.reshape(shape))

    first, second = (cut.kept if not scan else (cut.kept,) for cut in cuts)
    kept = tuple(map(shared, first, second))
    plain = [dataclasses.replace(cut, kept=None, prefix_ids_P=None) for cut in cuts]
    both = dataclasses.replace(
        jax.tree.map(interleaved, *plain),
        kept=kept[0] if scan else kept,
        prefix_ids_P=cuts[0].prefix_ids_P,
    )
    twice = jnp.repeat(tokens, 2, 0), jnp.repeat(token_lengths, 2, 0)
    found = Compiled(model).states(both, *twice)
    for i, cut in enumerate(cuts):
        alone = Compiled(model).states(cut, tokens, token_lengths)
        np.testing.assert_allclose(found[i::2], alone, atol=1e-5)


@pytest.mark.slow
def test_what_is_stored_is_counted_by_hand(rng):
    ids, lengths, *_ = tiny_inputs(rng)
    K, H = TINY.n_kv_heads, TINY.head_dim
    count, size = Compiled(model_of()).compress(PREFIX, ids, lengths).stored()
    np.testing.assert_array_equal(count, HEADS * np.array([4, 3, 1]))
    assert size == 2 * H * 4, "a key and a value of one KV head, fp32"
    for scan in (True, False):
        keys = tiny_model("gist", base=tiny_base(scan=scan), slot_form="key_values")
        count, size = Compiled(keys).compress(PREFIX, ids, lengths).stored()
        assert count.tolist() == [4, 4, 3] and size == 2 * TINY.n_layers * K * H * 4
    count, size = Compiled(tiny_model("gist")).compress(PREFIX, ids, lengths).stored()
    assert count.tolist() == [4, 4, 3] and size == TINY.d_model * 4
    count, _ = Compiled(tiny_model("closed_book")).compress(PREFIX, ids, lengths).stored()
    assert not count.any()
