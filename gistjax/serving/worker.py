"""One thread that owns a store: the questions that wait are answered together.

Whatever changes or asks the store goes through it, in the order in which it came; only questions
that are asked alike (`How`, whatever the document) are taken along with the first of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from gistjax.errors import BusyError, DataError, DeviceMemoryError, GistjaxError
from gistjax.inference.asking import BATCHES
from gistjax.inference.store import Store, Told
from gistjax.inference.store_index import PIECES
from gistjax.inference.warming import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST_QUESTIONS = BATCHES[-1]
"""Questions that are answered at once, and the most of one request."""


class How(NamedTuple):
    """How a question is asked, as `Store.ask` takes it."""

    pieces: int = PIECES
    threshold: float | None = None
    reread: float | None = None
    within: str | None = None

    def is_like(self, other: How | None) -> bool:
        """Return whether a question asked so is answered together with another."""
        return other is not None and self[:3] == other[:3]


@dataclass(eq=False)
class _Job:
    """A question, or another thing to do with the store, and what came of it."""

    question: str = ""
    how: How | None = None  # of a question
    call: Callable[[], object] | None = None  # of another thing
    future: Future[Any] = field(default_factory=Future)

    def end(self, result: object) -> None:
        """Tell what came of it."""
        if isinstance(result, GistjaxError):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Worker(threading.Thread):
    """Does what is to be done with a store.

    Whoever cancels a future before its turn has it dropped; what has begun goes on.

    Args:
        limit: the most questions and other things that wait.
        told: called with the number of questions of each batch, before they are answered.
        warming: compiles a program at each step, one after each batch until all are compiled.
    """

    def __init__(
        self,
        store: Store,
        limit: int,
        told: Callable[[int], None] = lambda _: None,
        warming: Iterator[Progress] | None = None,
    ):
        super().__init__(name="store", daemon=True)
        self._warming, self.progress = warming, Progress(0, 0) if warming else None
        self.store, self.stopping = store, False
        self.lost = False  # it ended without being told to
        self._limit, self._told = limit, told
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """Number of questions and other things that wait, without those that were cancelled."""
        return sum(not job.future.cancelled() for job in self._waiting)

    def ask(self, questions: Sequence[str], how: How) -> list[Future[Told]]:
        """Take questions, all or none.

        Raises:
            BusyError: if too many wait, or the server is stopping.
        """
        return self._put([_Job(question, how) for question in questions])

    def do(self, call: Callable[[], T]) -> Future[T]:
        """Take another thing to do with the store.

        Raises:
            BusyError: as `ask`.
        """
        (future,) = self._put([_Job(call=call)])
        return future

    def stop(self) -> None:
        """Take nothing more; the thread ends when all that was taken is done."""
        with self._changed:
            self.stopping = True
            self._changed.notify()

    def _put(self, jobs: list[_Job]) -> list[Future[Any]]:
        with self._changed:
            if self.stopping:
                raise BusyError("the server is stopping: ask again when it is back.")
            if len(self._waiting) + len(jobs) > self._limit:  # else nobody needs their room
                self._waiting = [job for job in self._waiting if not job.future.cancelled()]
            if (waiting := len(self._waiting)) + len(jobs) > self._limit:
                raise BusyError(
                    f"{waiting} questions wait, and at most {self._limit} may: ask later."
                )
            self._waiting += jobs
            self._changed.notify()
        return [job.future for job in jobs]

    def run(self) -> None:
        """Do what comes, until it is told to stop and nothing waits."""
        try:
            while jobs := self._take():
                if begun := [job for job in jobs if job.future.set_running_or_notify_cancel()]:
                    self._do(begun, self._told)
        finally:
            with self._changed:
                self.lost, self.stopping = not self.stopping, True
                for job in self._waiting:
                    job.future.cancel()

    def _take(self) -> list[_Job]:
        """Return what is done next, once there is something; nothing at the end."""
        while self._warming and not self.stopping:
            self._warm_up(self._warming)
            if self._waiting:
                break
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.stopping)
            taken = self._waiting[:1]
            if taken and (how := taken[0].how):
                alike = [job for job in self._waiting if how.is_like(job.how)]
                taken = alike[:MOST_QUESTIONS]
            begun = {*taken}
            self._waiting = [job for job in self._waiting if job not in begun]
            return taken

    def _warm_up(self, warming: Iterator[Progress]) -> None:
        """Compile the next program; what fails will be compiled, or told, when it is needed."""
        try:
            self.progress = next(warming, None)
        except BaseException as error:  # a library's panic, too
            log.warning("not warmed up (%s): first questions wait longer", type(error).__name__)
            self.progress = None
        if self.progress is None:
            self._warming = None
            log.info("ready for questions")

    def _do(self, jobs: list[_Job], told: Callable[[int], None] = lambda _: None) -> None:
        """Answer questions together, or do another thing alone.

        Each has its answer as soon as it is there. Questions that cannot be answered together, for
        want of memory or for what is kept of one document, are answered in halves.
        """
        how, call = jobs[0].how, jobs[0].call
        try:
            if how:
                told(len(jobs))
                questions = [job.question for job in jobs]
                within = [job.how.within for job in jobs if job.how]
                self.store.ask_many(
                    questions,
                    how.pieces,
                    how.threshold,
                    within,
                    lambda place, result: jobs[place].end(result),
                    how.reread,
                )
            else:
                assert call is not None
                jobs[0].end(call())
        except BaseException as error:  # a library's panic, too: this thread has to live
            left = [job for job in jobs if not job.future.done()]
            if len(jobs) > 1 and _is_of_one(error):
                half = (len(left) + 1) // 2
                for part in filter(None, (left[:half], left[half:])):
                    self._do(part)
                return
            known = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            for job in left:
                job.future.set_exception(known)


def _is_of_one(error: BaseException) -> bool:
    """Return whether fewer questions may be answered where so many are not."""
    if isinstance(error, MemoryError | DataError | DeviceMemoryError):
        return True
    return "RESOURCE_EXHAUSTED" in str(error)
