import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gistjax.compress.key_values import gist_mask


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
