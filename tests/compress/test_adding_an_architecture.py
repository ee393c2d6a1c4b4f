"""The worked example of CONTRIBUTING: a class of a user's own, trained, scored and asked; and what
is refused.
"""

import dataclasses
import json

import jax.numpy as jnp
import pytest
from flax import nnx

import gistjax
from gistjax.compress.architectures import check_architecture, find_architecture
from gistjax.config import CompressionConfig
from gistjax.errors import ConfigError
from gistjax.experiment import base as assembly
from gistjax.train import run_single_ablation
from gistjax.validation import validate
from tests.helpers.last_token import LastToken
from tests.helpers.runs import TRAINED
from tests.helpers.tiny import TINY

HERE = "tests.compress.test_adding_an_architecture."
CONFIG = TRAINED.replace(
    architecture="tests.helpers.last_token.LastToken",
    max_steps=2,
    data=dataclasses.replace(TRAINED.data, validation_examples=2),
    evaluation=dataclasses.replace(TRAINED.evaluation, baseline=False),
)


@pytest.mark.slow
def test_a_class_of_ones_own_trains_is_scored_and_answers(tmp_path):
    metrics = run_single_ablation(CONFIG, tmp_path / "run")
    assert metrics["steps"] == 2 and 0 <= metrics["final_f1"] <= 1
    assert metrics["compressor_parameters"] == 64 * 64
    assert not (tmp_path / "run" / "slot_attention.json").exists()  # it does not tell
    written = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert CompressionConfig.from_dict(written) == CONFIG
    document = gistjax.load(tmp_path / "run").compress("The mill was built in 1783.")
    assert isinstance(document.ask("When was the mill built?").text, str)


class Bare(nnx.Module):
    def __init__(self, base, M, ratio, key):
        pass


class Nothing(LastToken):
    gives = ()


class Undeclared(LastToken):
    def __init__(self, base, M, ratio, key):
        super().__init__(base, M, ratio, key)
        self.secret = nnx.Param(jnp.eye(base.d_model))


class TooMany(LastToken):
    def __call__(self, states_BxCxD, length_B, slots_B, M):
        return states_BxCxD


class Broken(LastToken):
    def __call__(self, states_BxCxD, length_B, slots_B, M):
        return states_BxCxD @ self.missing


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Bare", "has no `gives`"),
        ("Nothing", "gives nothing, but slot_form='soft_tokens' takes slots"),
        ("Undeclared", "architecture/secret': declare its partition_spec"),
        ("TooMany", r"returns float32 \(2, 192, 32\) .* return \(2, 8, 32\)"),
        ("Broken", "does not run on 2 contexts .*missing"),
        ("Absent", "cannot be imported .*Absent"),
    ],
)
def test_what_lacks_something_is_refused_before_weights_are_loaded(name, says, monkeypatch):
    config = CONFIG.replace(architecture=HERE + name)
    with pytest.raises(ConfigError, match=says):
        check_architecture(config, TINY)

    def never(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(assembly, "load_base", never)
    with pytest.raises(ConfigError, match=says.replace("32\\)", "64\\)")):
        assembly.load_pretrained(config)


def test_a_name_without_a_path_is_one_of_the_registry():
    with pytest.raises(ConfigError, match="did you mean 'gist'"):
        validate(CONFIG.replace(architecture="gits"))
    with pytest.raises(ConfigError, match="did you mean 'gist'"):
        find_architecture("gits")
