import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import TINY

from gistjax.config import CompressionConfig
from gistjax.model.compressor import Compressor


@pytest.mark.parametrize("ratio", [0, 1.5, 7, 13, 14, 28])
def test_as_many_slots_as_windows_also_where_xla_divides(ratio):
    """Compiled, where a product with the reciprocal would be one off at some multiples of 7, 13, 14 and 28."""
    lengths = np.arange(1, 4097)
    compressor = SimpleNamespace(ratio=ratio, M=2048)
    used = jax.jit(lambda n: Compressor.slots_used(compressor, n))(jnp.asarray(lengths))
    assert used.tolist() == [min(math.ceil(n / (ratio or 1)), 2048) for n in lengths.tolist()]


@pytest.mark.parametrize("name", ["conv", "gist", "pooling", "cross_attention"])
def test_one_compressor_has_one_shape_at_every_ratio(name):
    def shapes(ratio):
        config = CompressionConfig(architecture=name, ratio=ratio, ratios=(2.0, 4.0, 8.0))
        compressor = nnx.eval_shape(lambda: Compressor(TINY, config, jax.random.key(0)))
        return jax.tree.map(lambda leaf: leaf.shape, nnx.state(compressor, nnx.Param))

    assert shapes(4.0) == shapes(8.0)
