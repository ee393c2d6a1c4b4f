"""How many slots a context gets, in every way that this is asked."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.budget import Budget
from gistjax.config import CompressionConfig, DataConfig, SelectConfig

FIRST = DataConfig(select="first")
ANY = CompressionConfig(ratio=4.0, ratios=(2.0, 4.0, 16.0))


@pytest.mark.parametrize("ratio", [0, 1.5, 7, 13, 14, 28])
def test_as_many_slots_as_windows_also_where_xla_divides(ratio):
    """Compiled, where a product with the reciprocal would be one off at some multiples of 7, 13, 14
    and 28.
    """
    lengths = np.arange(1, 4097)
    budget = Budget(2048, ratio)
    used = jax.jit(budget.slots)(jnp.asarray(lengths))
    expected = [min(math.ceil(n / (ratio or 1)), 2048) for n in lengths.tolist()]
    assert used.tolist() == budget.slots(lengths).tolist() == expected
    assert [int(budget.slots(n)) for n in (1, 100, 4096)] == [expected[i] for i in (0, 99, 4095)]


@pytest.mark.parametrize("tenths", [*range(11, 60), 73, 99, 128, 311])
def test_a_fractional_ratio_gives_the_slots_of_exact_numbers_everywhere(tenths):
    """On host and device, configured or drawn: no row has more slots than there is room for."""
    lengths = np.arange(1, 600)
    budget, ratio = Budget(600, tenths / 10), np.float32(tenths / 10)
    expected = [-(-10 * n // tenths) for n in lengths.tolist()]
    drawn = np.full(len(lengths), ratio)
    assert budget.slots(lengths).tolist() == budget.slots(lengths, drawn).tolist() == expected
    assert jax.jit(budget.slots)(jnp.asarray(lengths)).tolist() == expected
    assert _slots(jnp.asarray(lengths), jnp.asarray(drawn)).tolist() == expected
    assert [budget.room(n) for n in lengths.tolist()] == expected


@jax.jit
def _slots(lengths, ratios):
    return Budget(600).slots(lengths, ratios)


def test_each_context_may_have_its_own_ratio():
    lengths, ratios = np.array([16, 9, 3]), np.array([2.0, 4.0, 2.0], np.float32)
    budget = Budget.of(ANY)
    assert budget.slots(lengths, ratios).tolist() == [8, 3, 2]
    assert jax.jit(budget.slots)(jnp.asarray(lengths), jnp.asarray(ratios)).tolist() == [8, 3, 2]
    assert (budget.room(16), budget.room(16, drawn=True), budget.at(8.0).room(16)) == (4, 8, 2)


@pytest.mark.parametrize(
    ("settings", "ratio"),
    [
        ({"target_length": 64}, 8),
        ({"target_length": 512, "ratio": 4.0}, 4),
        ({"target_length": 64, "ratio": 2.0}, 8),  # M is the most
        ({"architecture": "none"}, 1),
        ({"architecture": "none", "target_length": 32, "data": FIRST}, 16),
        ({"architecture": "none", "target_length": 512, "ratio": 2.0, "data": FIRST}, 2),
        ({"architecture": "closed_book"}, 1),
    ],
)
def test_nominal_ratio(settings, ratio):
    assert Budget.of(CompressionConfig(**settings)).nominal_ratio == ratio


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({"architecture": "none"}, 512),
        ({"architecture": "closed_book"}, 0),
        ({}, 64),
        ({"target_length": 512, "ratio": 4.0, "ratios": (2.0, 4.0)}, 256),  # room for the least
    ],
)
def test_positions_that_a_context_takes_in_the_decoder(settings, positions):
    assert Budget.of(CompressionConfig(**settings)).decoder_positions(512) == positions


@pytest.mark.parametrize(
    "ratio, config", [(2, ANY), (7.5, ANY), (16, ANY), (8, ANY.replace(ratio=8.0, ratios=()))]
)
def test_ratios_that_were_trained(ratio, config):
    assert Budget.of(config).ratio_problem(ratio) == ""


@pytest.mark.parametrize(
    "ratio, config, told",
    [
        (1.5, ANY, "with 2 to 16 tokens"),
        (17, ANY, "with 2 to 16 tokens"),
        (4, ANY.replace(ratio=8.0, ratios=()), "with 8 tokens"),
        (4, CompressionConfig(), "64 slots for any context"),
        (4, ANY.replace(architecture="none"), "no number of tokens a slot"),
    ],
)
def test_ratios_that_were_not(ratio, config, told):
    assert told in Budget.of(config).ratio_problem(ratio)


def test_a_budget_in_bytes_takes_no_ratio():
    budget = Budget.of(CompressionConfig("select", select=SelectConfig(bytes=4096)))
    assert budget.ratio_problem(0) == "" and budget.nominal_ratio is None
    assert dataclasses.replace(budget, ratios=(2.0, 4.0)).ratio_problem(0) == ""
    assert "keeps 4096 bytes of entries" in budget.ratio_problem(8)


def test_entries_that_are_kept_have_room_at_any_ratio():
    config = CompressionConfig(architecture="select", target_length=4)
    length = np.array([100, 7])
    assert Budget.of(config).slots(length).tolist() == [4, 4]
    assert Budget.of(config.replace(ratio=2.0)).slots(length).tolist() == [50, 4]
    assert Budget.of(config).at(8.0).slots(length).tolist() == [13, 1]
    assert Budget.of(config).slots(length, np.array([1.0, 3.0])).tolist() == [100, 3]
    assert Budget.of(config.replace(ratio=2.0)).nominal_ratio == 2
