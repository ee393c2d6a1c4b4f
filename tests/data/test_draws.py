"""What a step draws: within its bounds, by its seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gistjax.data.draws import draw_joined

IDS = st.lists(st.integers(-1, 5), min_size=1, max_size=12)


@given(IDS, st.integers(1, 4), st.integers(1, 2), st.integers(0, 99))
def test_a_context_is_joined_by_real_others_of_its_micro_batch(ids, most, micro_batches, seed):
    ids_KxE = np.tile(np.asarray(ids, np.int32), (micro_batches, 1))
    joined = draw_joined([seed], ids_KxE, most)
    assert joined.shape == (ids_KxE.size, most) and joined.dtype == np.int32
    for place, row in enumerate(joined):
        own, others = place % len(ids), row[1:][row[1:] >= 0].tolist()
        assert row[0] == own and len(set(others)) == len(others)
        assert all(ids[other] >= 0 and ids[other] != ids[own] for other in others)
        assert (row[1 : len(others) + 1] >= 0).all() and (row[len(others) + 1 :] == -1).all()
    np.testing.assert_array_equal(joined, draw_joined([seed], ids_KxE, most))


def test_each_number_of_others_is_as_likely():
    ids = np.arange(4000, dtype=np.int32)[None]
    others = (draw_joined([0], ids, 4) >= 0).sum(1) - 1
    assert others.min() == 0 and others.max() == 3
    assert abs(np.bincount(others) / 4000 - 0.25).max() < 0.03
    assert not np.array_equal(draw_joined([0], ids, 4), draw_joined([1], ids, 4))
