"""What a finished run may be asked with."""

import pytest

from gistjax.config import (
    CompressionConfig,
    DataConfig,
    EncoderConfig,
    LoraConfig,
    SelectConfig,
)
from gistjax.errors import ConfigError
from gistjax.experiment.meaning import asked, changed_in_use, check_meaning

ANY = CompressionConfig(ratio=4.0, ratios=(2.0, 4.0, 16.0))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "pooling"}, "architecture"),
        ({"slot_place": "inside"}, "slot_place"),
        ({"encoder": EncoderConfig(kind="lora")}, "encoder.kind"),
        ({"lora": LoraConfig(alpha=1.0)}, "lora.alpha"),
        ({"select": SelectConfig("conv", bytes=9)}, "select.scorer"),
    ],
)
def test_what_gives_weights_another_meaning_is_refused(changes, named):
    check_meaning(ANY.replace(ratio=2.0, seed=1, data=DataConfig(path="elsewhere")), ANY)
    with pytest.raises(ConfigError, match=f"^{named}: this model was trained"):
        check_meaning(ANY.replace(**changes), ANY)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "poolin"}, "^architecture cannot be 'poolin'; did you mean 'pooling'"),
        ({"connector": "rsm"}, "^connector cannot be 'rsm'; did you mean 'rms'"),
        ({"select": SelectConfig("covn")}, "^select.scorer cannot be 'covn'; did you mean 'conv'"),
    ],
)
def test_a_value_that_there_is_not_is_told_the_nearest(changes, says):
    with pytest.raises(ConfigError, match=says):
        check_meaning(ANY.replace(**changes), ANY)
    check_meaning(ANY.replace(**changes), ANY.replace(**changes))  # of an earlier version


@pytest.mark.parametrize(
    "changes", [{"bytes": 4096}, {"bits": (4,)}, {"warmup": 0.5}, {"temperature": 0.0}]
)
def test_a_budget_and_what_training_alone_reads_are_no_weights(changes):
    trained = CompressionConfig(architecture="select", select=SelectConfig("conv"))
    other = trained.replace(select=SelectConfig("conv", **changes))
    check_meaning(other, trained)
    assert changed_in_use(other, trained) == []


def test_a_budget_may_be_spread_otherwise_and_that_is_told():
    trained = CompressionConfig(architecture="select", select=SelectConfig("conv"))
    other = trained.replace(select=SelectConfig("conv", "profile", "file"))
    check_meaning(other, trained)
    assert changed_in_use(other, trained) == ["select.spread", "select.profile"]
    assert changed_in_use(trained.replace(ratio=2.0), trained) == []


def test_a_cut_has_no_key_of_slots_that_its_full_context_does_not_read():
    own = EncoderConfig(kind="lora", bidirectional=True)
    full = CompressionConfig(architecture="none", slot_start="window_means", encoder=own)
    cut = asked(full.replace(architecture="select"), full)
    assert (cut.slot_start, cut.encoder) == ("architecture", EncoderConfig())
    check_meaning(cut, full)
    full = full.replace(ratios=(2.0, 4.0))
    assert asked(full.replace(architecture="select"), full).ratios == ()
    mine = asked(full.replace(architecture="select", slot_start="window_ends"), full)
    assert mine.slot_start == "window_ends"  # what is asked for is refused, not dropped


def test_a_profile_goes_with_its_spread():
    trained = CompressionConfig(architecture="select", select=SelectConfig("conv", "profile", "x"))
    other = asked(trained.replace(select=SelectConfig("conv", "all", "x")), trained)
    assert other.select.profile == ""
    mine = asked(trained.replace(select=SelectConfig("conv", "all", "y")), trained)
    assert mine.select.profile == "y"  # what is asked for is refused, not dropped


def test_a_scorer_without_the_form_that_it_chooses_for_is_told_of_it():
    full = CompressionConfig(architecture="none")
    with pytest.raises(ConfigError, match="select.scorer: .*add --config.architecture=select"):
        check_meaning(full.replace(select=SelectConfig("knorm")), full)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder": EncoderConfig(bidirectional=True)}, "trained to read them causally"),
        ({"encoder": EncoderConfig(kind="lora")}, "does not have"),
        ({"select": SelectConfig("gist")}, "this full-context model has none"),
    ],
)
def test_a_cut_that_its_full_context_was_not_trained_for_is_refused(changes, says):
    full = CompressionConfig(architecture="none")
    with pytest.raises(ConfigError, match=says):
        check_meaning(full.replace(architecture="select", **changes), full)
