"""Eight virtual CPU devices for every test."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub

import jax
import numpy as np
import pytest
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)
settings.register_profile("gistjax", deadline=None, max_examples=40)
settings.load_profile("gistjax")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
