"""Log lines in programs that call gistjax: the run's own are shown, those of libraries are not."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

HUB = ("httpx", "huggingface_hub", "datasets")
"""Loggers that report each retry, whose last error is raised anyway."""


def show_progress() -> None:
    """Show the lines of gistjax on standard error, unless the program has set up logging."""
    logger = logging.getLogger("gistjax")
    theirs = [handler for handler in logging.root.handlers if not _is_default(handler)]
    if theirs or logger.handlers or logger.isEnabledFor(logging.INFO):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _is_default(handler: logging.Handler) -> bool:
    """Return whether this is what `logging.warning` adds by itself, as a library's import does."""
    formatter = handler.formatter
    is_basic = formatter is not None and formatter._fmt == logging.BASIC_FORMAT
    return type(handler) is logging.StreamHandler and is_basic


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's libraries from logging less than errors in a `with` block."""
    loggers = [logging.getLogger(name) for name in HUB]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.ERROR))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
