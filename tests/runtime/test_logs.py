import contextlib
import logging

import pytest

from gistjax.runtime.logs import quiet_hub, show_progress


@contextlib.contextmanager
def without_handlers():
    """The root's logger and the package's as in a new process; restored afterwards."""
    root, ours = logging.root, logging.getLogger("gistjax")
    before = [
        (logger, logger.handlers[:], logger.level, logger.propagate) for logger in (root, ours)
    ]
    for logger, level in ((root, logging.WARNING), (ours, logging.NOTSET)):
        logger.handlers[:], logger.propagate = [], True
        logger.setLevel(level)
    try:
        yield root, ours
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def test_lines_are_shown_once_where_nobody_has_set_up_logging(capsys):
    with without_handlers() as (root, _):
        by_default = logging.StreamHandler()  # as a library's `logging.warning` adds
        by_default.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
        root.addHandler(by_default)
        show_progress()
        show_progress()
        logging.getLogger("gistjax.train").info("step 1")
    assert capsys.readouterr().err == "step 1\n"


@pytest.mark.parametrize("whose", [0, 1])
def test_a_program_keeps_its_own_logging(whose):
    theirs = logging.NullHandler()
    with without_handlers() as loggers:
        loggers[whose].addHandler(theirs)
        show_progress()
        assert loggers[1].handlers == [[], [theirs]][whose]
        assert loggers[1].level == logging.NOTSET


def test_retries_of_the_hub_are_not_shown(caplog):
    caplog.set_level(logging.WARNING, "huggingface_hub")  # others may have set it higher
    with quiet_hub():
        logging.getLogger("huggingface_hub").warning("retry")
        logging.getLogger("huggingface_hub").error("failed")
    logging.getLogger("huggingface_hub").warning("afterwards")
    assert "retry" not in caplog.text and "failed" in caplog.text
    assert "afterwards" in caplog.text
