"""Sizes that are written are read again."""

import dataclasses
import json

import pytest

from gistjax.weights.families import FAMILIES
from gistjax.weights.registry import KNOWN
from launch.synthetic_weights import hugging_face_config

NAMES = ("tiny-facts", "llama-3.2-1b-instruct", "qwen2.5-0.5b-instruct", "qwen3-0.6b")


@pytest.mark.parametrize("name", NAMES)
def test_a_written_config_is_read_as_the_sizes_that_it_is_of(name):
    config = dataclasses.replace(KNOWN[name].config, rope_scaling=None)
    written = json.loads(json.dumps(hugging_face_config(config)))
    assert FAMILIES[written["model_type"]](written) == config
