import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.model.compressor import Compressor


@pytest.mark.parametrize("ratio", [0, 1.5, 7, 13, 14, 28])
def test_as_many_slots_as_windows_also_where_xla_divides(ratio):
    """Compiled, where a product with the reciprocal would be one off at some multiples of 7, 13, 14 and 28."""
    lengths = np.arange(1, 4097)
    compressor = SimpleNamespace(ratio=ratio, M=2048)
    used = jax.jit(lambda n: Compressor.slots_used(compressor, n))(jnp.asarray(lengths))
    assert used.tolist() == [min(math.ceil(n / (ratio or 1)), 2048) for n in lengths.tolist()]
