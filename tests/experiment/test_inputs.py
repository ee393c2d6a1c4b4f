import logging

import pytest

from gistjax.config import CompressionConfig, ModelConfig
from gistjax.experiment.inputs import _note_what_to_expect


@pytest.mark.parametrize(
    ("name", "measured"), [("smollm2-135m-instruct", True), ("llama-3.1-8b-instruct", False)]
)
def test_scores_of_another_base_are_said_to_be_of_another_base(name, measured, caplog):
    with caplog.at_level(logging.INFO):
        _note_what_to_expect(CompressionConfig(model=ModelConfig(name)))
    (said,) = caplog.messages
    assert "of SmolLM2-135M stayed near closed book (F1 0.07 to 0.13)" in said
    assert ("another base was not measured" in said) is not measured
