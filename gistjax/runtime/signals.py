"""SIGTERM and SIGINT (CTRL-C) as a wish to stop, fulfilled between two training steps."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """Training was stopped by a signal, and its state is saved.

    Not an `Exception`: nothing goes on after it.
    """


class StopSignals:
    """A `with` block that catches the signals; leaving it raises `Stopped` if one came.

    After the first signal they act as if never caught: a second one ends the process at once.
    Outside the main thread, where Python hears no signals, none is caught.
    """

    requested = False

    def __enter__(self) -> StopSignals:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._hear) for name in SIGNALS}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
        if self.requested and error is None:
            raise Stopped("stopped; training is saved: run the same command again to go on")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for name in SIGNALS:
            signal.signal(name, signal.SIG_DFL)
        log.warning(
            "%s: saving after this step, then stopping; once more stops at once",
            signal.Signals(number).name,
        )
