"""The server on a real socket: endpoints, OpenAI's client, who is let in, and how it ends."""

import contextlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import openai
import pytest

from gistjax.data.tasks import written_tokens
from gistjax.errors import StorageError
from gistjax.runtime.files import RunLock
from gistjax.serving.guard import BODY_BYTES
from tests.helpers.client import wait_for

MILL = {"question": "Who built the mill?"}


@pytest.fixture(scope="module")
def client(start):
    return start()


def test_documents_are_added_listed_asked_and_removed(client):
    text = "The pump is checked every spring."
    added = {"name": "notes/pump", "unchanged": False, "pieces": 1, "compressed": 1}
    assert client("POST", "/documents", {"name": "notes/pump", "text": text})[2] == added
    names = [one["name"] for one in client("GET", "/documents")[2]["documents"]]
    assert names == ["mill", "notes/port", "notes/pump"]
    body = {"questions": ["When is the pump checked?", "Xylophones?"], "pieces": 1}
    pump, none = client("POST", "/ask", body)[2]["answers"]
    assert not pump["reread"]
    again, _ = client("POST", "/ask", body | {"reread": 1.0})[2]["answers"]
    assert again["reread"]
    assert pump["pieces"][0]["text"] == text and pump["answer"]["tokens"] > 0
    assert none["question"] == "Xylophones?" and "ask in its words" in none["error"]
    assert client("DELETE", "/documents/notes/pump")[2] == {"removed": "notes/pump"}
    status, _, body = client("DELETE", "/documents/notes/pump")
    assert status == 404 and "holds no 'notes/pump'" in body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/ask", {"question": "Xylophones?"}, "ask in its words"),
        ("/ask", {"question": "\ud800"}, "unable to parse raw data as a unicode"),
        ("/ask", {}, "give either question or questions"),
        ("/ask", MILL | {"within": "mil"}, "did you mean 'mill'"),
        ("/ask", MILL | {"pieces": 65}, "pieces: Input should be less than or equal to 64"),
        ("/ask", MILL | {"threshold": 0.5}, "calibrat"),
        ("/ask", MILL | {"reread": 2}, "reread: Input should be less than or equal to 1"),
        ("/ask", {"questions": ["Who?"] * 65}, "questions: List should have at most 64 items"),
        ("/ask", {"question": "mill " * 2001}, "question: String should have at most 10000"),
        ("/ask", "who?", "must be a JSON object"),
        ("/documents", {"name": "a\nb", "text": "A word."}, "cannot be printed"),
        ("/documents", {"name": "a" * 1025, "text": "A word."}, "name: String should have at most"),
        ("/documents", {"name": "a", "text": " "}, "the document is empty"),
        ("/v1/chat/completions", {"model": "gpt"}, "the only one here"),
    ],
)
def test_mistakes_are_told_in_one_form(client, path, body, message):
    status, _, reply = client("POST", path, body)
    assert status == (404 if path.startswith("/v1") else 400), reply
    assert reply["error"]["type"] == "invalid_request_error"
    assert message in reply["error"]["message"]


def test_openais_client_is_answered(client, store):
    asker = openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none")
    (model,) = asker.models.list().data
    asked = {"model": model.id, "messages": [{"role": "user", "content": MILL["question"]}]}
    reply = asker.chat.completions.create(**asked, temperature=0)
    told = store.ask(MILL["question"])
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", told.answer.text)
    most = written_tokens(store.engine.config)
    assert choice.finish_reason == ("length" if told.answer.tokens == most else "stop")
    ids = store.engine.pretrained.prompt.encode_question(MILL["question"])
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), told.answer.tokens)
    assert usage.total_tokens == len(ids) + told.answer.tokens
    assert reply.gistjax["pieces"][0]["document"] == "mill"
    with pytest.raises(openai.BadRequestError, match="n=3 is not honoured") as refused:
        asker.chat.completions.create(**asked, n=3)
    assert refused.value.body["param"] == "n"


def test_questions_of_several_clients_are_answered_in_one_run(client, batches, held_up):
    with ThreadPoolExecutor(4) as clients:
        with held_up(client.worker):
            replies = [clients.submit(client, "POST", "/ask", MILL) for _ in range(4)]
            client.await_waiting(4)
            assert "gistjax_waiting 4.0" in client("GET", "/metrics")[2]
        assert {reply.result(20)[0] for reply in replies} == {200}
    assert batches == [4]


def test_a_full_queue_and_a_long_wait_are_told(start, held_up):
    client = start(queue=1, seconds=0.5)
    with held_up(client.worker), ThreadPoolExecutor(1) as clients:
        late = clients.submit(client, "POST", "/ask", MILL)
        client.await_waiting(1)
        status, headers, body = client("POST", "/ask", MILL)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "1 questions wait, and at most 1 may" in body["error"]["message"]
        status, _, body = late.result(20)
        assert status == 504 and "took longer than 0.5 s" in body["error"]["message"]
        assert client.worker._waiting[0].future.cancelled()


def test_a_client_that_went_away_is_not_answered(client, batches, held_up):
    with held_up(client.worker):
        client.send("POST", "/ask", MILL).close()
        wait_for(lambda: len(client.worker._waiting) == 1)
        wait_for(client.worker._waiting[0].future.cancelled)
        assert "gistjax_waiting 0.0" in client("GET", "/metrics")[2]
    assert client("POST", "/ask", MILL)[0] == 200
    assert batches == [1]
    counted = 'gistjax_requests_total{endpoint="POST /ask",status="499"} 1.0'
    assert counted in client("GET", "/metrics")[2]


def test_documents_are_listed_while_the_worker_is_busy(client, held_up):
    with held_up(client.worker):
        status, _, body = client("GET", "/documents")
    assert status == 200 and [one["name"] for one in body["documents"]] == ["mill", "notes/port"]


def test_what_was_accepted_is_answered_before_it_stops(start, held_up):
    client = start()
    assert client("GET", "/readyz")[0] == 200
    with ThreadPoolExecutor(1) as clients:
        with held_up(client.worker):
            accepted = clients.submit(client, "POST", "/ask", MILL)
            client.await_waiting(1)
            client.worker.stop()
            assert client("GET", "/readyz")[0] == 503 and client("GET", "/healthz")[0] == 200
            status, headers, body = client("POST", "/ask", MILL)
            assert status == 503 and "is stopping" in body["error"]["message"]
        assert accepted.result(20)[0] == 200
    client.worker.join(20)
    with pytest.raises(ConnectionError):
        wait_for(lambda: client("GET", "/healthz")[0] != 200)


def test_who_has_no_token_is_told_nothing(start):
    client = start(token="0123456789abcdef", names=["docs.example"])
    for given in ({}, {"Authorization": "Bearer 0123456789abcdeF"}, {"Authorization": "é"}):
        status, headers, _ = client("GET", "/documents", **given)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    own = {"Authorization": "Bearer 0123456789abcdef", "Host": "docs.example:8000"}
    assert client("GET", "/documents", **own)[0] == 200
    for path in ("/metrics", "/openapi.json", "/nothing"):
        assert client("GET", path)[0] == 401
    assert client("GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example"},
        {"Host": "attacker.example:8000", "Origin": "http://attacker.example:8000"},
        {"Host": ""},
        {"Host": "["},
        {"Origin": "http://attacker.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
)
def test_pages_of_other_sites_are_refused(client, headers):
    status, _, body = client("POST", "/ask", MILL, **headers)
    assert status == 403 and ("Host" in body["error"]["message"] or "Origin" in str(body))
    own = {"Host": f"localhost:{client.port}", "Origin": f"http://localhost:{client.port}"}
    assert client("POST", "/ask", MILL, **own)[0] == 200


def test_a_body_that_is_too_long_is_refused(client):
    as_json = {"Content-Type": "application/json"}
    announced = as_json | {"Content-Length": str(BODY_BYTES + 1)}
    status, _, body = client("POST", "/documents", None, **announced)
    assert status == 413 and f"more than {BODY_BYTES} bytes" in body["error"]["message"]
    chunks = [b'{"name": "long", "text": "', b"a" * BODY_BYTES, b'"}']
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it reads no further
        assert client("POST", "/documents", iter(chunks), **as_json)[0] == 413
    assert len(client("GET", "/documents")[2]["documents"]) == 2


def test_what_the_machine_is_at_fault_for_is_told_and_no_text_is_logged(
    client, store, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    secret = "Ostrel"
    assert client("POST", "/ask", {"question": f"Was {secret} dredged?"})[0] == 200

    full = f"RESOURCE_EXHAUSTED: {secret}"
    errors = [
        StorageError("the disk is full."),
        MemoryError(),
        ValueError(full),
        ValueError(secret),
    ]
    monkeypatch.setattr(store.index, "documents", Mock(side_effect=errors))
    for status, message in (
        (503, "the disk is full."),
        (503, "has not the memory or room"),
        (503, "has not the memory or room"),
        (500, "a mistake in gistjax"),
    ):
        found, _, body = client("GET", "/documents")
        assert (found, body["error"]["type"]) == (status, "server_error")
        assert message in body["error"]["message"]
    page = client("GET", "/metrics")[2]
    assert 'endpoint="GET /documents",status="500"' in page and "batch_questions_sum" in page
    assert caplog.text.count("ValueError, a mistake in gistjax") == 1
    assert "in documents\n" in caplog.text  # where in the code
    assert secret not in caplog.text and secret not in page


def test_a_document_is_to_come_again_where_another_process_writes(client, store):
    with RunLock(store.index.path):
        status, headers, body = client("POST", "/documents", {"name": "a", "text": "A word."})
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "another process writes to the store: try again" in body["error"]["message"]
        assert client("POST", "/ask", MILL)[0] == 200


def test_a_fault_of_the_machine_is_none_of_one_question(client, store, monkeypatch):
    asked = {"questions": ["Who built the mill?", "Was the harbour dredged?"]}
    assert client("POST", "/ask", {**asked, "within": "nobody"})[0] == 400
    monkeypatch.setattr(store, "ask_many", Mock(side_effect=StorageError("the disk is full.")))
    status, headers, _ = client("POST", "/ask", asked)
    assert status == 503 and "Retry-After" not in headers
    assert store.ask_many.call_count == 1, "not asked one by one"


def test_names_that_are_no_text_and_long_messages_are_refused(client):
    model = client("GET", "/v1/models")[2]["data"][0]["id"]
    turns = [{"role": "user", "content": "why " * 3000}]
    status, _, body = client("POST", "/v1/chat/completions", {"model": model, "messages": turns})
    assert status == 400 and "more than 10000 characters" in body["error"]["message"]
    for path, given in (("/v1/chat/completions", {"model": model}), ("/ask", {"question": "Who?"})):
        status, _, body = client("POST", path, {**given, "\ud800" + "x" * 1000: 1})
        assert status == 400 and len(json.dumps(body)) < 500
