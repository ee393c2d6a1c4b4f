"""Replies in parts: OpenAI's client, plain HTTP, what breaks off, and who goes away."""

import contextlib
import json
import threading

import openai
import pytest

from gistjax.errors import StorageError
from gistjax.serving import worker
from tests.helpers.client import wait_for

MILL, LONG = "Who built the mill?", "mill " * 60  # padded further: of another run
ASKED = {"questions": [LONG, "Xylophones?", MILL], "stream": True}


@pytest.fixture(scope="module")
def client(start):
    return start()


@pytest.fixture
def hold_run(store, monkeypatch):
    """Holds up a run of the compiled program, the first or a later one, until the event is set."""
    runs, release = [], threading.Event()

    def hold(number):
        answer = store.engine.programs.answer

        def held(state, ids, size):
            runs.append(len(ids))
            assert len(runs) != number or release.wait(20)
            return answer(state, ids, size)

        monkeypatch.setattr(store.engine.programs, "answer", held)
        return release

    yield hold
    release.set()


@pytest.fixture
def asker(client):
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none", max_retries=0
    )


def chat(asker, question, **more):
    turns = [{"role": "user", "content": question}]
    model = asker.models.list().data[0].id
    return asker.chat.completions.create(model=model, messages=turns, stream=True, **more)


@contextlib.contextmanager
def asking(client, body):
    """The reply to a question, of which no more is read than is wanted."""
    with contextlib.closing(client.send("POST", "/ask", body)) as connection:
        reply = connection.getresponse()
        assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/event-stream")
        yield reply


def read(reply):
    """The next event."""
    line, end = reply.readline(), reply.readline()
    assert line.startswith(b"data: ") and end == b"\n"
    return line[6:-1].decode() if line == b"data: [DONE]\n" else json.loads(line[6:])


def test_openais_client_reads_a_stream(asker, store):
    told = store.ask(MILL)
    says, ends = chat(asker, MILL)
    assert (says.object, says.id) == ("chat.completion.chunk", ends.id)
    delta = says.choices[0].delta
    assert (delta.role, delta.content) == ("assistant", told.answer.text)
    assert says.choices[0].finish_reason is None and says.gistjax["pieces"][0]["document"] == "mill"
    assert ends.choices[0].delta.content is None
    whole = asker.chat.completions.create(
        model=says.model, messages=[{"role": "user", "content": MILL}]
    )
    assert ends.choices[0].finish_reason == whole.choices[0].finish_reason
    *chunks, usage = chat(asker, MILL, stream_options={"include_usage": True})
    assert len(chunks) == 2 and [chunk.usage for chunk in chunks] == [None, None]
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert "usage" not in says.to_dict()


def test_an_error_before_the_first_event_has_its_status(asker, client):
    with pytest.raises(openai.BadRequestError, match="ask in its words"):
        chat(asker, "Xylophones?")
    status, headers, body = client("POST", "/ask", {"question": "Xylophones?", "stream": True})
    assert status == 400 and headers["Content-Type"] == "application/json"
    assert "ask in its words" in body["error"]["message"]


def test_each_answer_is_sent_as_soon_as_it_is_there(client, store, hold_run):
    release = hold_run(2)
    with asking(client, ASKED) as reply:
        none, first = read(reply), read(reply)
        release.set()
        second = read(reply)
        assert (read(reply), reply.read()) == ("[DONE]", b"")
    assert (none["index"], none["question"]) == (1, "Xylophones?")
    assert "ask in its words" in none["error"]
    told = {one["index"]: one for one in (first, second)}
    assert {place: one["question"] for place, one in told.items()} == {0: LONG, 2: MILL}
    expected = store.ask(MILL).to_json()
    assert told[2]["pieces"] == json.loads(json.dumps(expected["pieces"]))
    assert told[2]["answer"]["written"] == expected["answer"]["written"]


def test_what_breaks_off_ends_with_the_error(client, store, monkeypatch):
    answer, runs = store.engine.programs.answer, []

    def full(state, ids, size):
        runs.append(len(ids))
        if len(runs) == 2:
            raise StorageError("the disk is full.")
        return answer(state, ids, size)

    monkeypatch.setattr(store.engine.programs, "answer", full)
    with asking(client, ASKED | {"questions": [LONG, MILL]}) as reply:
        assert "answer" in read(reply)
        assert read(reply)["error"]["message"] == "the disk is full."
        assert reply.read() == b""


def test_what_takes_too_long_ends_with_the_error(start, hold_run):
    client, release = start(seconds=1), hold_run(1)
    with asking(client, ASKED) as reply:
        assert "ask in its words" in read(reply)["error"]
        assert "took longer than 1 s" in read(reply)["error"]["message"]
        assert reply.read() == b""
    counted = 'gistjax_requests_total{endpoint="POST /ask",status="504"} 1.0'
    release.set()
    client.worker.do(lambda: None).result(20)  # what has begun is over
    assert counted in client("GET", "/metrics")[2]


def test_who_goes_away_from_a_stream_has_what_has_not_begun_dropped(
    start, hold_run, batches, monkeypatch
):
    release = hold_run(2)
    monkeypatch.setattr(worker, "MOST_QUESTIONS", 1)
    client = start()
    with asking(client, ASKED | {"questions": [MILL] * 3}) as reply:
        read(reply)
        wait_for(lambda: client.worker.waiting == 1)
    wait_for(client.worker._waiting[0].future.cancelled)
    release.set()
    assert client("POST", "/ask", {"question": MILL})[0] == 200
    assert len(batches) == 3, "the third of three was not asked"
    counted = 'gistjax_requests_total{endpoint="POST /ask",status="499"} 1.0'
    assert counted in client("GET", "/metrics")[2]
