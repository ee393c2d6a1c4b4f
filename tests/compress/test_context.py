"""Several compressed contexts, joined in each form."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.context import join
from gistjax.compress.sequence import make_sequence
from tests.helpers.tiny import FAMILIES, PREFIX, TINY, Compiled, in_turn, tiny_base, tiny_model

FORMS = {
    "soft tokens": {},
    "spread": {"slot_positions": "spread", "slot_start": "window_means", "ratio": 3.0},
    "behind": {"slot_form": "key_values"},
    "inside": {
        "slot_form": "key_values",
        "slot_place": "inside",
        "slot_start": "window_ends",
        "slot_positions": "spread",
        "ratio": 3.0,
    },
}


def pieces_of(model, rng, lengths=(16, 9)):
    """Contexts of one row each, and their token ids."""
    ids = [np.pad(rng.integers(0, 61, n), (0, 16 - n))[None] for n in lengths]
    contexts = [
        jax.device_get(model.compress(PREFIX, jnp.asarray(row), jnp.array([n])))
        for row, n in zip(ids, lengths, strict=True)
    ]
    return contexts, ids


@pytest.mark.slow
@pytest.mark.parametrize(("form", "scan"), in_turn(FORMS, (True, False)))
def test_one_piece_joined_answers_as_the_piece(form, scan, rng):
    model = Compiled(tiny_model("gist", base=tiny_base(scan=scan), **FORMS[form]))
    (piece, _), _ = pieces_of(model, rng)
    alone = join([piece], 8, TINY)
    tokens, length = jnp.array(rng.integers(0, 61, (1, 7))), jnp.array([5])
    wanted, expected = (model.states(c, tokens, length)[:, :5] for c in (piece, alone))
    chex.assert_trees_all_close(wanted, expected, atol=1e-4)
    assert alone.size == 8 and alone.slots_B[0] == piece.slots_B[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_joined_pieces_stand_one_behind_another(form, rng):
    model = Compiled(tiny_model("gist", **FORMS[form]))
    (first, second), _ = pieces_of(model, rng)
    joined = join([first, second], 16, TINY)
    n, m = int(first.slots_B[0]), int(second.slots_B[0])
    assert joined.slots_B[0] == joined.valid_BxX.sum() == n + m
    assert joined.length_B[0] == first.length_B[0] + second.length_B[0]
    np.testing.assert_allclose(joined.position_BxX[0, :n], first.position_BxX[0, :n])
    np.testing.assert_allclose(
        joined.position_BxX[0, n : n + m], second.position_BxX[0, :m] + first.length_B[0]
    )
    np.testing.assert_array_equal(joined.x_BxXxD[0, n : n + m], second.x_BxXxD[0, :m])
    if joined.kv is not None:
        np.testing.assert_array_equal(
            joined.kv.v[..., n : n + m, :], second.kv.v[..., :m, :]
        )  # values have no position


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "family", "scan"),
    [
        ("behind", "llama", True),
        ("inside", "llama", True),
        ("inside", "smollm3", True),
        ("inside", "smollm3", False),
    ],
)
def test_turned_keys_are_those_of_the_same_pass_at_later_positions(form, family, scan, rng):
    """Attention knows positions by their difference alone, so moving a whole pass changes its keys'
    rotation only.
    """
    config = FAMILIES[family]
    plain = tiny_model("gist", base=tiny_base(config, scan=scan), **FORMS[form])
    model, offset = Compiled(plain), 21
    (piece, _), (ids, _) = pieces_of(model, rng)
    placed = model.in_sequence(PREFIX, jnp.asarray(ids), jnp.array([16]))
    sequence = make_sequence(plain.base, placed)
    T = sequence.valid_BxT.shape[1]
    positions = plain.form.positions(sequence) + offset
    _, cache = plain.base(
        sequence.x_BxTxD,
        positions,
        lora=plain.compressor.encoder.lora or plain.lora,
        cache=plain.base.empty_cache(1, T),
    )
    turned = piece.kv.turned(offset, config)
    n = int(piece.slots_B[0])
    slots = np.flatnonzero(np.asarray(sequence.valid_BxT & ~sequence.cut_BxT)[0])[3:]  # no prefix
    layers = zip(turned.k, turned.v, cache.k, cache.v, piece.kv.k, config.rotates, strict=True)
    for k, v, their_k, their_v, before, rotates in layers:
        chex.assert_trees_all_close(k[..., :n, :], their_k[..., slots, :], atol=1e-4)
        chex.assert_trees_all_close(v[..., :n, :], their_v[..., slots, :], atol=1e-4)
        assert (np.abs(np.asarray(k) - np.asarray(before)).max() > 0.1) == rotates


@pytest.mark.slow
def test_joined_keys_are_those_of_the_pieces_turned(rng):
    model = Compiled(tiny_model("gist", slot_form="key_values"))
    (first, second), _ = pieces_of(model, rng)
    joined = join([first, second], 8, TINY)
    moved = second.kv.turned(int(first.length_B[0]), TINY)
    chex.assert_trees_all_close(joined.kv.k[..., :4, :], np.asarray(first.kv.k), atol=1e-6)
    chex.assert_trees_all_close(joined.kv.k[..., 4:, :], np.asarray(moved.k), atol=1e-6)
    other = dataclasses.replace(joined, position_BxX=0 * joined.position_BxX)
    tokens, length = jnp.array([[5, 6, 7]]), jnp.array([3])
    chex.assert_trees_all_equal(
        *(model.states(c, tokens, length) for c in (joined, other))
    )  # keys are read as they are kept
