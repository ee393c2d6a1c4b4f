"""What most questions need is compiled before the server says that it is ready."""

import contextlib
import threading

import pytest

import gistjax
from gistjax.inference import warming
from gistjax.inference.warming import Progress, warm_up
from gistjax.serving.worker import How, Worker
from tests.helpers.client import wait_for

MILL = "Who built the mill?"
PAGE = "\n\n".join(
    f"Page {number}. The {thing} of {place} was built by Anneke Dursel, who kept it for {number} "
    "years and sold it to the town after the flood."
    for number, (thing, place) in enumerate(
        (thing, place) for thing in ("mill", "port", "well") for place in ("Ostrel", "Varn", "Idd")
    )
)


def test_nothing_is_compiled_for_questions_after_it(store, tmp_path, monkeypatch):
    monkeypatch.setattr(warming, "SIZES", warming.SIZES[:1])
    own = gistjax.Store(tmp_path / "store", store.engine)
    assert list(warm_up(own)) == [], "of an empty store nothing is known"
    own.add("page", PAGE)
    told = list(warm_up(own))
    assert [one.compiled for one in told] == list(range(len(told)))
    assert {one.programs for one in told} == {len(told)} and len(told) >= 4
    programs, before = own.engine.programs, len(own.engine.programs)
    alone = own.ask("mill of Ostrel")
    batch = own.ask_many(["mill of Ostrel", "port of Varn", "well of Idd", "years, Ostrel"])
    assert len({tuple(piece.key for piece in one.pieces) for one in batch}) > 1
    assert len(programs) == before
    assert batch[0].answer.written == alone.answer.written


@pytest.fixture
def steps():
    """A warm-up of two programs, each of which waits until it may go on."""
    going = threading.Semaphore(0)

    def step():
        for compiled in range(2):
            yield Progress(compiled, 2)
            assert going.acquire(timeout=20)

    return going, step()


def test_a_server_is_ready_when_it_is_warm_and_answers_meanwhile(start, steps):
    going, step = steps
    client = start(warming=step)
    with contextlib.closing(client.send("POST", "/ask", {"question": MILL})) as asked:
        client.await_waiting(1)
        going.release()
        assert asked.getresponse().status == 200, "after a program, and not after all"
    status, _, body = client("GET", "/readyz")
    assert status == 503 and "warming up: 1 of 2 programs" in body["error"]["message"]
    assert client("GET", "/healthz")[0] == 200
    going.release()
    wait_for(lambda: client("GET", "/readyz")[0] == 200)


def test_what_fails_while_it_warms_up_keeps_no_question_from_its_answer(store, caplog):
    def failing():
        yield Progress(0, 2)
        raise MemoryError

    worker = Worker(store, 8, warming=failing())
    worker.start()
    assert worker.ask([MILL], How())[0].result(20).answer
    assert worker.progress is None and "not warmed up (MemoryError)" in caplog.text
    worker.stop()
    worker.join(20)
    assert not worker.is_alive()
