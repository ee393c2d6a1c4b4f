import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gistjax.compress.compressor import Compressor
from gistjax.compress.encoder import Encoder
from gistjax.config import CompressionConfig, EncoderConfig, LoraConfig
from gistjax.model.lora import Trainable
from tests.helpers.tiny import TINY, tiny_base


@pytest.mark.parametrize("name", ["conv", "gist", "pooling", "cross_attention"])
def test_one_compressor_has_one_shape_at_every_ratio(name):
    def shapes(ratio):
        config = CompressionConfig(architecture=name, ratio=ratio, ratios=(2.0, 4.0, 8.0))
        compressor = nnx.eval_shape(lambda: Compressor(TINY, TINY, config, jax.random.key(0)))
        return jax.tree.map(lambda leaf: leaf.shape, nnx.state(compressor, nnx.Param))

    assert shapes(4.0) == shapes(8.0)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_an_encoder_adapts_the_layers_that_it_runs(scan, rng):
    base = tiny_base(scan=scan)
    config = EncoderConfig(kind="lora", layers=2, lora=LoraConfig(rank=2, targets=("q", "down")))
    encoder = Encoder(TINY, config, False, jax.random.key(0))
    ids, length = jnp.array(rng.integers(0, 61, (2, 5))), jnp.array([5, 3])
    graphdef, adapters = nnx.split(encoder, Trainable)

    def size(adapters):
        return jnp.square(nnx.merge(graphdef, adapters)(base, ids, length)).sum()

    grads = jax.jit(jax.grad(size))(jax.tree.map(lambda x: x + 0.1, adapters))
    leaves = jax.tree.leaves(grads)
    assert len(leaves) == 4 and all(leaf.shape[0] == 2 for leaf in leaves)
    assert all(np.abs(layer).max() > 0 for leaf in leaves for layer in np.asarray(leaf))
