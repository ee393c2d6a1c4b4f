import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from gistjax.compress.parameters import split_model
from gistjax.config import CompressionConfig, EncoderConfig
from gistjax.errors import CheckpointError, ConfigError
from gistjax.experiment import base
from gistjax.experiment.run_dir import RunDir
from gistjax.runtime.devices import DETERMINISTIC, start_jax
from gistjax.runtime.files import write_json
from gistjax.train import run_single_ablation
from tests.helpers.runs import ASKED as CONFIG

GIVEN = "--xla_backend_optimization_level=0"


def test_deterministic_sets_its_flag_before_jax_starts():
    """In a process of its own, since JAX runs in this one. XLA ends a process that gives it a flag
    it does not know.
    """
    script = """
import os
from gistjax.runtime.devices import start_jax
from gistjax.config import CompressionConfig, EncoderConfig
start_jax(CompressionConfig(deterministic=True))
print(os.environ["XLA_FLAGS"])
import jax
jax.devices()
"""
    environment = {**os.environ, "XLA_FLAGS": GIVEN}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{GIVEN} {DETERMINISTIC}\n"), done.stderr


def test_deterministic_is_refused_where_jax_runs_already(monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", GIVEN)
    with pytest.raises(ConfigError, match=f"too late.*XLA_FLAGS={DETERMINISTIC}"):
        start_jax(CompressionConfig(deterministic=True))
    assert os.environ["XLA_FLAGS"] == GIVEN


@pytest.mark.parametrize("deterministic, flags", [(True, f"{GIVEN} {DETERMINISTIC}"), (False, "")])
def test_nothing_is_set_where_it_is_given_or_not_wanted(deterministic, flags, monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", flags)
    start_jax(CompressionConfig(deterministic=deterministic))
    assert os.environ["XLA_FLAGS"] == flags


@pytest.mark.parametrize("architecture", ["pooling", "gist", "none"])
def test_a_model_to_be_read_is_the_seeded_one_but_for_its_arrays(architecture):
    config = CONFIG.replace(architecture=architecture)
    pretrained = base.load_pretrained(config)
    seeded = split_model(base.build_model(config, pretrained))
    shapes = split_model(base.build_model(config, pretrained, seeded=False))
    assert shapes[0] == seeded[0], "structure"
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), seeded[1])
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), shapes[1]) == described
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(shapes[1]))
    jax.tree.map(np.testing.assert_array_equal, shapes[2], seeded[2])


def test_a_base_that_runs_share_is_checked_against_each_of_them(tmp_path):
    pretrained = base.load_pretrained(CONFIG)
    deeper = CONFIG.replace(encoder=EncoderConfig(kind="hidden", layers=99))
    with pytest.raises(ConfigError, match="encoder.layers=99, but the base has"):
        run_single_ablation(deeper, tmp_path / "run", pretrained)


def test_a_run_may_be_asked_another_tasks_questions_but_not_with_another_prompt(tmp_path):
    run = RunDir(tmp_path)
    trained = base.load_pretrained(CONFIG)
    run.write_about(CONFIG, trained)
    other = CONFIG.replace(data=dataclasses.replace(CONFIG.data, task="hotpotqa"))
    asked = base.load_pretrained(other)
    assert asked.prompt.sha256 != trained.prompt.sha256
    asked.check_run(run)
    about = run.about()
    write_json(run.config_file, {**about, "prompt_sha256": asked.prompt.sha256})
    with pytest.raises(CheckpointError, match="another tokenizer or chat template"):
        asked.check_run(run)
