"""What waits is answered together, dropped or refused; nothing that was taken is lost."""

from unittest.mock import Mock

import pytest

import gistjax
from gistjax.errors import BusyError, CheckpointError, ConfigError, DataError
from gistjax.serving.worker import How, Worker

MILL, PORT = "Who built the mill?", "Was the harbour dredged?"


@pytest.fixture
def start(store):
    workers = []

    def started(limit=64, **options):
        workers.append(Worker(options.pop("store", store), limit, **options))
        workers[-1].start()
        return workers[-1]

    yield started
    for worker in workers:
        worker.stop()
        worker.join(20)
        assert not worker.is_alive()


def test_questions_that_wait_are_answered_in_one_run(start, store, batches, held_up):
    told = []
    worker = start(told=told.append)
    with held_up(worker):
        asked = [worker.ask([question], How())[0] for question in (MILL, PORT, "Xylophones?")]
        (alone,) = worker.ask([MILL], How(pieces=1))
        asked += worker.ask([PORT], How())
    answers = [asked[place].result(20) for place in (0, 1, 3)]
    assert alone.result(20).pieces[0].document == "mill"
    assert (told, batches) == ([4, 1], [4, 1])  # one of the four has no answer: a row of padding
    with pytest.raises(DataError, match="has a word of the question"):
        asked[2].result(20)
    alike = [store.ask(question).answer.written for question in (MILL, PORT, PORT)]
    assert [told.answer.written for told in answers] == alike


def test_questions_on_several_documents_are_answered_in_one_run(start, batches, held_up):
    worker = start()
    with held_up(worker):
        asked = [
            worker.ask([question], How(within=name))[0]
            for question, name in (
                (MILL, "mill"),
                ("mill?", "mil"),
                (PORT, "notes/port"),
                (MILL, "mill"),
            )
        ]
    named = [asked[place].result(20).pieces[0].document for place in (0, 2, 3)]
    assert named == ["mill", "notes/port", "mill"]
    with pytest.raises(ConfigError, match="did you mean 'mill'"):
        asked[1].result(20)
    assert batches == [4]


def test_questions_whose_pieces_need_more_memory_than_there_is_are_answered_in_turns(
    store, batches, monkeypatch
):
    asked = [MILL, PORT, MILL, PORT]
    together = [told.answer.written for told in store.ask_many(asked, 1)]
    assert batches == [4]
    monkeypatch.setattr(store, "_room_bytes", 1)
    told = store.ask_many(asked, 1)
    assert [one.answer.written for one in told] == together and batches == [4, 1, 1, 1, 1]
    assert [one.pieces[0].document for one in told] == ["mill", "notes/port"] * 2


def test_a_full_queue_takes_no_more_and_what_was_cancelled_takes_no_room(start, held_up):
    worker = start(limit=2)
    with held_up(worker):
        first, second = worker.ask([MILL, PORT], How())
        with pytest.raises(BusyError, match="2 questions wait, and at most 2 may"):
            worker.do(lambda: None)
        assert second.cancel()
        third = worker.do(lambda: "done")
        with pytest.raises(BusyError):
            worker.ask([MILL], How())
    assert first.result(20).answer and third.result(20) == "done"


def test_what_was_cancelled_is_not_asked(start, batches, held_up):
    worker = start()
    with held_up(worker):
        futures = worker.ask([MILL] * 6, How())
        assert all(future.cancel() for future in futures[1:])
    assert futures[0].result(20).pieces[0].document == "mill"
    assert batches == [1]


def test_what_was_taken_is_done_before_it_ends(start, held_up):
    worker = start()
    with held_up(worker):
        (asked,), other = worker.ask([MILL], How()), worker.do(lambda: 3)
        worker.stop()
        with pytest.raises(BusyError, match="is stopping"):
            worker.ask([MILL], How())
    worker.join(20)
    assert asked.done() and asked.result().answer and other.result() == 3


def test_what_is_damaged_spoils_no_other_answer(start, store, held_up, tmp_path):
    own = gistjax.Store(tmp_path / "store", store.engine)
    own.add("mill", "The mill was built by Anneke Dursel.")
    own.add("port", "The harbour of Ostrel was dredged.")
    own.index.file(own.index.pieces("port")[0].key).write_bytes(b"damaged")
    worker = start(store=own)
    with held_up(worker):
        mill, port = worker.ask([MILL, PORT], How(pieces=1))
    assert mill.result(20).pieces[0].document == "mill"
    with pytest.raises(CheckpointError, match="port|damaged|checksum"):
        port.result(20)


def test_what_cannot_be_answered_together_is_answered_one_by_one(
    start, store, held_up, monkeypatch
):
    answer, told = store.engine.programs.answer, []

    def too_large(state, ids, size):
        if len(ids) > 1:
            raise MemoryError
        return answer(state, ids, size)

    monkeypatch.setattr(store.engine.programs, "answer", too_large)
    worker = start(told=told.append)
    with held_up(worker):
        asked = worker.ask([MILL, PORT], How(pieces=1))
    assert [one.result(20).pieces[0].document for one in asked] == ["mill", "notes/port"]
    assert told == [2]


def test_each_has_its_answer_before_the_next_run_begins(start, store, held_up, monkeypatch):
    answer, done, asked = store.engine.programs.answer, [], []

    def counted(state, ids, size):
        done.append(sum(one.done() for one in asked))
        return answer(state, ids, size)

    monkeypatch.setattr(store.engine.programs, "answer", counted)
    worker = start()
    with held_up(worker):
        asked += worker.ask([MILL, "mill " * 60, "Xylophones?", PORT], How())
    assert all(one.exception(20) is None for one in (asked[0], asked[1], asked[3]))
    assert done == [1, 2, 3]  # first is told what has no word in the store


def test_what_has_its_answer_is_not_asked_again(start, store, held_up, monkeypatch):
    answer, rows = store.engine.programs.answer, []

    def runs_out(state, ids, size):
        rows.append(len(ids))
        if len(rows) == 2:
            raise MemoryError
        return answer(state, ids, size)

    monkeypatch.setattr(store.engine.programs, "answer", runs_out)
    worker = start()
    with held_up(worker):
        asked = worker.ask([MILL, "mill " * 60, PORT], How(pieces=1))
    assert [one.result(20).pieces[0].document for one in asked] == ["mill", "mill", "notes/port"]
    assert rows == [1] * 4, "the first of three, the second, which fails, and the two that are left"


class Panic(BaseException):
    """As a library's, which is no Exception."""


def test_a_panic_is_told_to_whom_it_befell_and_the_others_are_answered(
    start, store, held_up, monkeypatch
):
    ask_many = store.ask_many
    monkeypatch.setattr(store, "ask_many", Mock(side_effect=Panic("secret")))
    worker = start()
    with held_up(worker):
        asked = worker.ask([MILL, PORT], How())
    for one in asked:
        with pytest.raises(RuntimeError, match="^Panic$"):
            one.result(20)
    assert store.ask_many.call_count == 1
    monkeypatch.setattr(store, "ask_many", ask_many)
    assert worker.ask([MILL], How())[0].result(20).answer and not worker.lost


def test_a_thread_that_ends_by_itself_takes_nothing_more_and_says_so(store, monkeypatch):
    worker = Worker(store, 8)
    monkeypatch.setattr(worker, "_take", Mock(side_effect=Panic))
    (waits,) = worker.ask([MILL], How())
    with pytest.raises(Panic):
        worker.run()
    assert waits.cancelled() and worker.lost
    with pytest.raises(BusyError, match="is stopping"):
        worker.ask([MILL], How())
