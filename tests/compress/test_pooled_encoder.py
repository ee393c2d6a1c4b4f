"""An encoder that pools by two in its last layers, and a scorer that reads pooled states."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.compress.architectures import check_architecture
from gistjax.compress.encoder import Encoder, pool, pooled_length
from gistjax.compress.learned import LEARNED as SCORERS
from gistjax.compress.scorers import Reading
from gistjax.config import CompressionConfig, DataConfig, EncoderConfig, LoraConfig, SelectConfig
from gistjax.errors import ConfigError
from gistjax.model.layer import Seen
from tests.helpers.tiny import PREFIX, TINY, check_learns_alike, tiny_base, tiny_model

LORA = LoraConfig(rank=2, alpha=2.0)


def encoder_of(**changes):
    return Encoder(TINY, EncoderConfig(kind="hidden", **changes), False, jax.random.key(0))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_means_of_two_by_hand(C, length):
    length = min(length, C)
    x = np.random.default_rng(C).normal(size=(1, C, 2)).astype(np.float32)
    found = np.asarray(pool(jnp.array(x), jnp.array([length])))[0]
    chex.assert_shape(found, (-(-C // 2), 2))
    n = int(pooled_length(np.array([length]))[0])
    for i in range(n):
        np.testing.assert_allclose(
            found[i], x[0, 2 * i : min(2 * i + 2, length)].mean(0), rtol=1e-5
        )
    assert not found[n:].any()


@pytest.mark.parametrize("scan", [True, False])
def test_layers_in_two_parts_are_the_layers(scan, rng):
    base = tiny_base(scan=scan)
    x, place = jnp.array(rng.normal(size=(2, 7, 32)), jnp.float32), jnp.arange(7)[None]
    half, _ = base(x, place, n_layers=1)
    both, _ = base(half, place, n_layers=range(1, 3))
    chex.assert_trees_all_close(both, base(x, place)[0], atol=1e-6)


def test_without_pooling_states_are_what_they_were(rng):
    base, ids, length = tiny_base(), jnp.array(rng.integers(0, 61, (2, 9))), jnp.array([9, 4])
    expected, _ = base(base.embed(ids), jnp.arange(9)[None], n_layers=3)
    encoder = encoder_of()
    chex.assert_trees_all_equal(encoder(base, ids, length), expected)
    chex.assert_trees_all_equal(encoder.positions(length), length)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_no_pooled_state(bidirectional, rng):
    base, length = tiny_base(), jnp.array([9, 5, 1])
    encoder = encoder_of(pool=2, bidirectional=bidirectional)
    ids = rng.integers(0, 61, (3, 9))
    other = np.where(np.arange(9) < np.asarray(length)[:, None], ids, 7)
    one, two = (np.asarray(encoder(base, jnp.array(x), length)) for x in (ids, other))
    chex.assert_shape(one, (3, 3, 32))
    for b, n in enumerate(np.asarray(encoder.positions(length))):
        np.testing.assert_array_equal(one[b, :n], two[b, :n])
    assert encoder.positions(length).tolist() == [3, 2, 1]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_pooled_state_sees_tokens_up_to_the_end_of_its_group(bidirectional):
    """Each token has an embedding of its own, so that its gradient is what is seen of it."""
    C, n, pooled = 9, 7, 2
    encoder = encoder_of(pool=pooled, bidirectional=bidirectional)

    def states(table):
        base = tiny_base()
        base.embedding[...] = table
        return encoder(base, jnp.arange(C)[None], jnp.array([n]))[0] @ jnp.arange(1.0, 33)

    table = tiny_base().embedding[...]
    seen = np.abs(np.asarray(jax.jit(jax.jacobian(states))(table)))[:, :C].sum(-1) > 0
    end = n if bidirectional else np.minimum(2**pooled * np.arange(1, 3), n)[:, None]
    np.testing.assert_array_equal(seen[:2], np.arange(C) < np.broadcast_to(end, (2, 1)))


def test_read_weights_are_of_tokens():
    encoder, length = encoder_of(pool=2), jnp.array([7])
    read = np.asarray(encoder.of_tokens(jnp.eye(2)[None], length, 8))[0]
    quarter, rest = [0.25] * 4 + [0.0] * 4, [0.0] * 4 + [0.25, 0.25, 0.5, 0.0]
    np.testing.assert_allclose(read, [quarter, rest])


@pytest.mark.parametrize("scorer", ["conv", "pooling"])
def test_tokens_of_a_group_have_its_score_and_padding_has_no_part(scorer, rng):
    P, C, n = len(PREFIX), 11, 9
    select = SelectConfig(scorer)
    model = tiny_model("select", select=select, ratio=4.0)
    weights = {name: x[...][0] for name, x in model.selector.learned.items()}
    weights = {name: x + 0.1 * rng.normal(size=x.shape) for name, x in weights.items()}
    reading = Reading(TINY, P, jnp.zeros((1, C), jnp.int32), jnp.array([n]), 0)
    h = jnp.array(rng.normal(size=(1, P + C, 32)), jnp.float32)

    def score(h, **level):
        seen = Seen(h, *[None] * 7)
        return SCORERS[scorer].score(reading, {**weights, **level}, seen)[0]

    pooled = np.asarray(score(h, level=jnp.int32(1)))
    np.testing.assert_array_equal(pooled[:, 0:n:2][:, :4], pooled[:, 1:n:2])
    assert len(set(pooled[0, :n:2].tolist())) == 5
    np.testing.assert_allclose(score(h, level=jnp.int32(0))[:, :n], score(h)[:, :n], atol=1e-6)
    np.testing.assert_array_equal(score(h.at[:, P + n :].set(1e6), level=1)[:, :n], pooled[:, :n])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": EncoderConfig(pool=1)}, "needs layers that make states"),
        ({"encoder": EncoderConfig(kind="hidden", pool=4)}, "more than the 3 layers"),
        ({"encoder": EncoderConfig(kind="hidden", pool=3)}, "a state for 8 tokens"),
        (
            {
                "architecture": "select",
                "select": SelectConfig("gist"),
                "encoder": EncoderConfig(pool=1),
            },
            "select.scorer='gist' reads none",
        ),
    ],
)
def test_what_cannot_be_pooled_is_refused(changes, message):
    config = CompressionConfig(target_length=4, data=DataConfig(context_tokens=16), ratio=4.0)
    with pytest.raises(ConfigError, match=message):
        check_architecture(config.replace(**changes), TINY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv+gist", "select"])
def test_what_is_pooled_learns_and_two_devices_give_the_loss_of_one(name):
    base = dataclasses.replace(TINY, n_layers=2)
    changes = {"encoder": EncoderConfig(kind="lora", pool=1, lora=LORA), "ratio": 4.0}
    if name == "select":
        changes["select"] = SelectConfig("conv", warmup=0.0)
    check_learns_alike(lambda: tiny_model(name, base=tiny_base(base), **changes))
