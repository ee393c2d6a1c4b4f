import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.compress.key_values import gist_mask
from gistjax.model.config import LlamaConfig
from gistjax.model.masks import lengths_to_valid
from tests.helpers.tiny import PREFIX, TINY, Compiled, tiny_base, tiny_inputs, tiny_model


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_gist_mask_cuts_the_context_from_what_follows_and_nothing_else(P, C, M):
    T = 16  # what follows is 1 to 13 tokens
    where = np.arange(T)
    cut = (where >= P) & (where < P + C)
    after = where >= P + C + M
    ones = jnp.ones((1, T), bool)
    mask = np.asarray(gist_mask(ones, jnp.array(cut)[None], jnp.array(after)[None]))[0]
    assert not mask[np.ix_(after, cut)].any()
    allowed = ~(after[:, None] & cut[None, :])
    np.testing.assert_array_equal(mask[allowed], np.tril(np.ones((T, T), bool))[allowed])


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=2))
def test_no_query_looks_at_nothing(rows):
    valid = jnp.array(rows)
    everything = jnp.ones_like(valid)
    mask = gist_mask(valid, everything, ~everything)
    assert bool(jnp.all(jnp.any(mask, axis=-1)))


def test_key_values_have_m_positions_and_no_context(rng):
    model = Compiled(tiny_model("gist", slot_form="key_values"))
    ids, length, *_ = tiny_inputs(rng)
    memory = model.compress(PREFIX, ids, length)
    assert memory.size == 4
    chex.assert_shape(memory.kv.k, (3, 3, 2, 4, 8))
    chex.assert_shape(memory.kv.v, (3, 3, 2, 4, 8))


@functools.cache
def one_layer_of_gist():
    """The memory of contexts, and the gradient of what follows it with respect to what it is read
    from.
    """
    one_layer = LlamaConfig(**{**TINY.__dict__, "n_layers": 1})
    model = Compiled(tiny_model("gist", slot_form="key_values", base=tiny_base(one_layer)))

    def last_state(x, memory, tokens, tokens_length):
        last = tokens_length[:, None] - 1
        h = model.states(dataclasses.replace(memory, x_BxXxD=x), tokens, tokens_length, last)
        return jnp.sum(jnp.sin(h))

    return functools.partial(model.in_sequence, PREFIX), jax.jit(jax.grad(last_state))


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=2, max_size=2),
    st.integers(0, 2**31),
)
@settings(max_examples=8)
def test_what_follows_the_slots_does_not_see_the_context(lengths, seed):
    """In a base of one layer, nothing of the context has reached a slot's key or value yet: any
    gradient from the answer to the context would be a leak through the gist mask. Slots themselves
    must be seen.
    """
    memory_of, gradient = one_layer_of_gist()
    rng = np.random.default_rng(seed)
    ids, tokens = (jnp.array(rng.integers(0, 61, (2, n))) for n in (9, 5))
    length, tokens_length = (jnp.array(column) for column in zip(*lengths, strict=True))
    memory = memory_of(ids, length)
    grad = np.abs(np.asarray(gradient(memory.x_BxXxD, memory, tokens, tokens_length))).sum(-1)
    assert (grad[:, :9] == 0).all()
    used = np.minimum(np.asarray(length), 4)
    assert ((grad[:, 9:] > 0) == (np.arange(4) < used[:, None])).all()


@pytest.mark.slow
def test_deeper_bases_see_the_context_through_the_slots_alone(rng):
    model = tiny_model("gist", slot_form="key_values")
    ids, length, tokens, tokens_length = tiny_inputs(rng)

    def total(x, cut):
        memory = dataclasses.replace(model.in_sequence(PREFIX, ids, length), x_BxXxD=x)
        if cut:  # hide the slots as well: no path is left
            memory = dataclasses.replace(memory, cut_BxX=memory.valid_BxX)
        h = jnp.sin(model.states(memory, tokens, tokens_length))
        return jnp.sum(jnp.where(lengths_to_valid(tokens_length, h.shape[1])[..., None], h, 0))

    x = model.in_sequence(PREFIX, ids, length).x_BxXxD
    gradient = jax.jit(jax.grad(total), static_argnums=1)
    open_path = np.abs(np.asarray(gradient(x, False)))[:, :16]
    assert (open_path.sum(-1) > 0).sum() == int(length.sum())
    assert (np.asarray(gradient(x, True))[:, :16] == 0).all()
