import numpy as np
from tiny import tiny_base

from gistjax.config import MeshConfig
from gistjax.data.prompts import Row
from gistjax.sharding import make_mesh
from gistjax.training.context_views import context_views


def row(context_ids, context_id):
    question = np.array([1, 2], np.int32)
    return Row(np.array(context_ids, np.int32), question, question, context_id, 0)


def test_a_view_is_the_mean_of_the_states_whatever_stands_beside_it():
    base = tiny_base()
    rows = [row([5, 6, 7], 0), row([9, 8, 7, 6, 5, 4], 2), row([5, 6, 7], 0)]
    views = context_views(base, rows, 2, make_mesh(MeshConfig()), 1, (4, 8), (4,))
    assert views.shape == (3, 32) and views.dtype == np.float32
    for one in rows:
        states, _ = base(
            base.embed(one.context_ids[None]), np.arange(len(one.context_ids))[None], n_layers=2
        )
        np.testing.assert_allclose(views[one.context_id], states[0].mean(0), rtol=1e-4, atol=1e-5)
    assert (views[1] == 0).all(), "no such context"
