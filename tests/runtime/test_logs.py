import logging

import pytest

from gistjax.runtime.logs import quiet_hub, show_progress


@pytest.fixture
def loggers(monkeypatch):
    """The root without handlers, and the package's logger, restored afterwards."""
    root, ours = logging.root, logging.getLogger("gistjax")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(ours, "handlers", [])
    levels = root.level, ours.level
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.NOTSET)
    yield root, ours
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    ours.propagate = True


def test_lines_are_shown_once_where_nobody_has_set_up_logging(loggers, capsys):
    root, _ = loggers
    by_default = logging.StreamHandler()  # as a library's `logging.warning` adds
    by_default.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    root.addHandler(by_default)
    show_progress()
    show_progress()
    logging.getLogger("gistjax.train").info("step 1")
    assert capsys.readouterr().err == "step 1\n"


@pytest.mark.parametrize("whose", ["root", "ours"])
def test_a_program_keeps_its_own_logging(loggers, whose):
    theirs = logging.NullHandler()
    loggers[0 if whose == "root" else 1].addHandler(theirs)
    show_progress()
    assert loggers[1].handlers == ([] if whose == "root" else [theirs])
    assert loggers[1].level == logging.NOTSET


def test_retries_of_the_hub_are_not_shown(caplog):
    with quiet_hub():
        logging.getLogger("huggingface_hub").warning("retry")
        logging.getLogger("huggingface_hub").error("failed")
    logging.getLogger("huggingface_hub").warning("afterwards")
    assert "retry" not in caplog.text and "failed" in caplog.text
    assert "afterwards" in caplog.text
