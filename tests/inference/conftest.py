"""Tiny runs with random weights, and their engines."""

import pytest

import gistjax
from gistjax.data.dataset import load_dataset
from tests.helpers.runs import ASKED as CONFIG
from tests.helpers.runs import KNORM, write_run


@pytest.fixture(scope="module")
def rundir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "r8", CONFIG)


@pytest.fixture(scope="module")
def engine(rundir):
    return gistjax.load(rundir)


@pytest.fixture(scope="module")
def selecting(tmp_path_factory):
    """What keeps entries of the cache."""
    return gistjax.load(write_run(tmp_path_factory.mktemp("selecting") / "run", KNORM))


@pytest.fixture(scope="module")
def examples():
    return load_dataset(CONFIG.data, CONFIG.seed).validation
