import logging
from dataclasses import replace

import chex
import pytest

from gistjax.config import CompressionConfig, ModelConfig, SelectConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.errors import ConfigError
from gistjax.experiment.base import check_fit, find_prompt, load_pretrained
from gistjax.experiment.inputs import _note_what_to_expect, _teacher_targets
from tests.helpers.runs import SELECTED, write_run


@pytest.mark.parametrize(
    ("name", "measured"), [("smollm2-135m-instruct", True), ("llama-3.1-8b-instruct", False)]
)
def test_scores_of_another_base_are_said_to_be_of_another_base(name, measured, caplog):
    with caplog.at_level(logging.INFO):
        _note_what_to_expect(CompressionConfig(model=ModelConfig(name)))
    (said,) = caplog.messages
    assert "of SmolLM2-135M stayed near closed book (F1 0.07 to 0.13)" in said
    assert ("another base was not measured" in said) is not measured


@pytest.mark.slow
def test_a_teacher_that_keeps_entries_keeps_them_all(tmp_path):
    """Whatever its own budget: from the same weights, the targets of one that keeps every entry."""
    pretrained = load_pretrained(SELECTED)
    questions = encode_splits(
        load_dataset(SELECTED.data, 0), pretrained.prompt, SELECTED.data, SELECTED.seed
    )[0][:8]

    def targets_of(name, **budget):
        run = write_run(tmp_path / name, SELECTED.replace(**budget))
        config = SELECTED.replace(teacher=str(run), loss_weights={"distillation": 1.0})
        return _teacher_targets(config, pretrained, questions, 8)

    whole = targets_of("whole", ratio=1.0)
    chex.assert_trees_all_equal(targets_of("cut", ratio=16.0), whole)
    chex.assert_trees_all_equal(targets_of("few", ratio=0.0, target_length=1), whole)


def test_only_training_reads_a_context_twice_for_a_learned_scorer():
    data = replace(SELECTED.data, context_tokens=1200, context_buckets=(1200,))
    scorer, losses = SelectConfig(scorer="conv"), {"kvzip": 1.0}
    config = SELECTED.replace(data=data, select=scorer, loss_weights=losses)
    found = find_prompt(config)  # 2,048 positions
    with pytest.raises(ConfigError, match="'conv' reads a context twice"):
        check_fit(config, *found, trains=True)
