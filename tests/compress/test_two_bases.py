"""An encoder on another base than the decoder's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.compressed_lm import CompressedLM
from gistjax.compress.parameters import split_model
from gistjax.config import CompressionConfig, DataConfig, EncoderConfig, LoraConfig, MeshConfig
from gistjax.errors import ConfigError
from gistjax.runtime.sharding import make_mesh, put_batch
from tests.helpers.tiny import PREFIX, TINY, Compiled, micro_batches, start, tiny_base

CONFIG = CompressionConfig(
    architecture="gist",
    target_length=4,
    lora=LoraConfig(rank=2),
    encoder=EncoderConfig(kind="lora", lora=LoraConfig(rank=2)),
    data=DataConfig(context_tokens=16),
)
OTHER = dataclasses.replace(TINY, n_layers=2, d_ff=24, n_heads=2, n_kv_heads=1, head_dim=16)


def model_of(encoder_base=None, config=CONFIG, base=None):
    return CompressedLM(base or tiny_base(), config, jax.random.key(0), encoder_base)


@pytest.mark.slow
def test_the_encoder_reads_through_its_own_base(rng):
    ids, length = jnp.array(rng.integers(0, 61, (2, 16))), jnp.array([16, 9])
    model, encoder = model_of(tiny_base(OTHER, seed=3)), tiny_base(OTHER, seed=3)
    states = model.compressor.encoder(encoder, ids, length)
    M, slots = model.compressor.count(16, length)
    expected = model.compressor.connector(model.compressor.architecture(states, length, slots, M))
    found = Compiled(model).compress(PREFIX, ids, length).x_BxXxD
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    other = Compiled(model_of(tiny_base(OTHER, seed=4))).compress(PREFIX, ids, length).x_BxXxD
    assert float(jnp.abs(other - found).max()) > 1e-3


@pytest.mark.slow
def test_the_same_base_given_twice_is_the_base_alone(rng):
    ids, length = jnp.array(rng.integers(0, 61, (2, 16))), jnp.array([16, 9])
    models = (Compiled(model_of(base)) for base in (None, tiny_base()))
    one, two = (model.compress(PREFIX, ids, length) for model in models)
    np.testing.assert_array_equal(one.x_BxXxD, two.x_BxXxD)
    assert "encoder_base" not in split_model(model_of())[2]


@pytest.mark.slow
def test_it_trains_on_a_mesh_and_neither_base_changes(rng):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = model_of(tiny_base(OTHER, seed=3))
    state, frozen, step = start(mesh, model, {"teacher_forcing": 1.0}, rate=1e-2)
    batches, losses = put_batch(micro_batches(rng), mesh, leading=1), []
    before = jax.device_get(frozen)
    for _ in range(4):
        state, metrics = step(state, frozen, batches)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(frozen))
    assert {"base", "encoder_base"} <= set(frozen)


def test_bases_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="as wide as"):
        model_of(tiny_base(dataclasses.replace(TINY, d_model=16)))
    with pytest.raises(ConfigError, match="the same where slots are kept as keys"):
        model_of(tiny_base(), CONFIG.replace(slot_form="key_values"))
