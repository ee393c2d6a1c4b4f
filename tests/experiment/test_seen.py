"""Which paragraphs a run has seen, whatever the folder is called that they lie in."""

import dataclasses
import json
import logging

import pytest

from gistjax.config import DataConfig
from gistjax.data.dataset import load_dataset
from gistjax.errors import ConfigError
from gistjax.experiment.base import load_pretrained
from gistjax.experiment.inputs import load_inputs
from gistjax.experiment.run_dir import RunDir
from gistjax.experiment.seen import check_unseen
from gistjax.runtime.files import write_json
from tests.helpers.runs import ASKED

TEN = [f"Note {i}. The tap of house {i} is open." for i in range(10)]
OTHERS = [text.replace("tap", "gate") for text in TEN]


def write_data(folder, contexts):
    """Questions on paragraphs, the same in both splits."""
    folder.mkdir(parents=True)
    asked = {"question": "What has it?", "answers": ["house"]}
    lines = "".join(json.dumps({"context": text, **asked}) + "\n" for text in contexts)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


def config_of(folder, **data):
    given = {"path": str(folder), "task": "jsonl", "train_examples": -1, **data}
    return ASKED.replace(data=dataclasses.replace(ASKED.data, **given))


@pytest.fixture(scope="module")
def write_trained():
    """What writes a run's `config.json`, with the hash that training notes."""
    pretrained = load_pretrained(config_of("taps"))

    def write(path, config):
        path.mkdir()
        run, dataset = RunDir(path), load_dataset(config.data, config.seed)
        inputs = load_inputs(config, run, pretrained.mesh, dataset, pretrained)
        run.write_about(config, pretrained, {"data_sha256": inputs.data_sha256})
        run.exported.touch()
        return run

    return write


@pytest.fixture
def run(tmp_path, request, write_trained):
    """A run on ten paragraphs, but for the share that is held out."""
    config = config_of(write_data(tmp_path / "taps", TEN), holdout=getattr(request, "param", 0.2))
    return write_trained(tmp_path / "run", config)


def asks(run, folder, holdout):
    check_unseen(run, config_of(folder, holdout=holdout))


@pytest.mark.parametrize("gone", [False, True])
def test_a_copy_under_another_name_is_known_by_its_content(run, tmp_path, caplog, gone):
    copy = write_data(tmp_path / "mine", TEN)
    if gone:
        (tmp_path / "taps").rename(tmp_path / "away")
    asks(run, copy, 0.2)
    asks(run, copy, 0.1)
    with pytest.raises(
        ConfigError, match=r"=0.5: 3 of these 5 paragraphs .* \(held out there: 0.2"
    ):
        asks(run, copy, 0.5)
    assert not caplog.messages


def test_a_paragraph_among_others_is_found(run, tmp_path):
    seen = next(text for text in TEN if text in trained_on(run))
    mixed = write_data(tmp_path / "mixed", [*OTHERS, seen])
    with pytest.raises(ConfigError, match="1 of these 10 paragraphs"):
        asks(run, mixed, 10 / 11)


def trained_on(run):
    config = run.config()
    return {example.context for example in load_dataset(config.data, config.seed).train}


@pytest.mark.parametrize(("context", "seen"), [("paragraph", 3), ("filled", 6)])
def test_a_paragraph_that_was_not_drawn_was_not_seen(tmp_path, write_trained, context, seen):
    """Six of those asked about were in its split. It drew three; filled contexts hold any of it."""
    taps = write_data(tmp_path / "taps", TEN)
    config = config_of(taps, holdout=0.2, train_examples=3, context=context)
    run = write_trained(tmp_path / "run", config)
    with pytest.raises(ConfigError, match=f": {seen} of these 8 paragraphs"):
        asks(run, taps, 0.8)


def test_other_paragraphs_in_a_folder_of_the_same_name_are_taken(run, tmp_path, caplog):
    asks(run, write_data(tmp_path / "other" / "taps", OTHERS), 0.9)
    assert not caplog.messages


def test_what_cannot_be_compared_is_said(run, tmp_path, caplog):
    (tmp_path / "taps").rename(tmp_path / "away")
    with caplog.at_level(logging.WARNING):
        asks(run, write_data(tmp_path / "gates", OTHERS), 0.9)
    (said,) = caplog.messages
    assert f"not found at {tmp_path / 'taps'} or {tmp_path / 'gates'}, so nothing was" in said


def test_data_that_changed_where_they_lie_are_named_once(run, tmp_path, caplog):
    (tmp_path / "taps").rename(tmp_path / "away")
    write_data(tmp_path / "taps", OTHERS)
    with caplog.at_level(logging.WARNING):
        asks(run, tmp_path / "taps", 0.9)
    assert f"not found at {tmp_path / 'taps'}, so nothing" in caplog.text


@pytest.mark.parametrize("run", [0.0], indirect=True)
def test_an_earlier_stage_has_seen_them_too(run, tmp_path, write_trained):
    later = config_of(tmp_path / "taps", holdout=0.2).replace(init_from=str(run))
    with pytest.raises(ConfigError, match=rf"2 of these 2 paragraphs .* that {run} was .*: none"):
        asks(write_trained(tmp_path / "later", later), tmp_path / "taps", 0.2)


def test_a_run_of_0_1_is_told_by_the_name_of_its_data(run, tmp_path):
    about = run.about()
    del about["data_sha256"]
    write_json(run.config_file, about)
    (tmp_path / "taps").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="3 of these 5"):
        asks(run, write_data(tmp_path / "other" / "taps", TEN), 0.5)


def test_text_alone_holds_no_question(run, tmp_path):
    config = config_of(tmp_path / "taps", train_examples=0)
    write_json(run.config_file, {**run.about(), "config": config.to_json()})
    asks(run, tmp_path / "taps", 0.9)


def test_a_task_of_a_mixture_is_compared_with_all_of_them(tmp_path, write_trained):
    folder = write_data(tmp_path / "all" / "jsonl", TEN).parent
    write_data(folder / "squad", OTHERS)
    mixed = config_of(folder, task=DataConfig().task, tasks={"jsonl": 1.0, "squad": 1.0})
    run = write_trained(tmp_path / "run", mixed)
    with pytest.raises(ConfigError, match="2 of these 2"):
        asks(run, write_data(tmp_path / "mine", TEN), 0.2)
