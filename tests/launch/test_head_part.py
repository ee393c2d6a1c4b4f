import chex
import jax
import jax.numpy as jnp
import numpy as np

from gistjax.compress.architectures import HEADS
from gistjax.data.prompts import TokenizedExample
from launch.head_part import parts
from tests.helpers.tiny import tiny_model


def test_a_mark_is_the_same_in_every_slot(rng):
    model = tiny_model("pooling", slot_start="window_means")
    none = np.zeros(0, np.int32)
    rows = [
        TokenizedExample(rng.integers(0, 50, n, np.int32), none, none, n, 0, "answer")
        for n in (16, 11, 16)
    ]
    M = model.compressor.n_slots(16)
    found_XxD = parts(model, rows)  # two of the rows are on one context
    assert np.std(found_XxD, axis=0).max() > 0
    mark_D = jnp.array(rng.normal(size=model.base.config.d_model), jnp.float32)
    model.compressor.head = mark = HEADS["mark"](model.base.config, 1, 1, jax.random.key(0))
    mark.vector[...] = mark_D
    marks_XxD = parts(model, rows)
    chex.assert_equal_shape([found_XxD, marks_XxD])
    assert len(marks_XxD) == 2 * M
    expected = mark_D / jnp.sqrt(jnp.mean(mark_D**2))
    chex.assert_trees_all_close(marks_XxD, np.broadcast_to(expected, marks_XxD.shape), rtol=1e-4)
