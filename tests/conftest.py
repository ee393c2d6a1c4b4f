"""Eight virtual CPU devices for every test."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Tiny programs take longer to compile than to run: compile fast, and each once for all processes
# and runs. The other flags spare 40% of that; an XLA that does not know them would abort.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * (version("jaxlib") == "0.10.2"),
)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # no one reads them
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads wait by spinning on other workers' cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub

import jax
import numpy as np
import pytest
from hypothesis import settings

from tests.helpers.browser import started

jax.config.update("jax_num_cpu_devices", 8)
settings.register_profile("gistjax", deadline=None, max_examples=40)
settings.load_profile("gistjax")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long unless it is asked for; start with the files of most slow tests.

    So no worker ends long after others.
    """
    long = [item for item in items if item.get_closest_marker("long")]
    for item in long:
        item.add_marker("slow")
    if not os.environ.get("LONG_TESTS"):
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Look for garbage more rarely, and never in what was imported: a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a browser, where there is one."""
    with started() as one:
        yield one


MAPPINGS = 15_000
"""A quarter of what Linux lets a process have (vm.max_map_count).

XLA takes some for each program, and aborts without.
"""


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
    """Let go of compiled programs, which no later module needs, before there are too many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()
