import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gistjax.model.masks import Bidirectional, causal_mask, lengths_to_valid
from tests.helpers.tiny import positions_of

# Each shape is a program to compile: two rows, of few lengths.
rows_of_bools = st.sampled_from((1, 2, 5, 9)).flatmap(
    lambda T: st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=2, max_size=2)
)


@given(rows_of_bools)
def test_causal_mask_is_what_its_definition_says(rows):
    valid = np.array(rows)
    mask = np.asarray(causal_mask(jnp.array(valid)))
    for b, t, u in np.ndindex(mask.shape):
        expected = t == u or (u < t and valid[b, t] and valid[b, u])
        assert mask[b, t, u] == expected


@given(st.lists(st.integers(0, 6), min_size=2, max_size=2), st.integers(0, 6))
def test_bidirectional_lets_real_tokens_behind_the_prefix_see_all_real_ones(lengths, prefix):
    mask = np.asarray(Bidirectional(jnp.array(lengths), prefix).array(6))
    for b, t, u in np.ndindex(mask.shape):
        real = t < lengths[b] and u < lengths[b]
        assert mask[b, t, u] == (t == u or (real and (u < t or t >= prefix)))


@given(rows_of_bools)
def test_no_query_looks_at_nothing(rows):
    assert bool(jnp.all(jnp.any(causal_mask(jnp.array(rows)), axis=-1)))


@given(rows_of_bools)
def test_positions_count_real_tokens(rows):
    valid = np.array(rows)
    positions = np.asarray(positions_of(jnp.array(valid)))
    for row, places in zip(valid, positions, strict=True):
        np.testing.assert_array_equal(places[row], np.arange(row.sum()))
    assert (positions >= 0).all()


def test_lengths_to_valid():
    valid = lengths_to_valid(jnp.array([0, 2, 3]), 3)
    np.testing.assert_array_equal(valid, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
