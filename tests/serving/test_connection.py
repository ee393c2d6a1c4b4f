"""Clients that keep a connection and neither ask nor read are let go; others are answered."""

import contextlib
import socket
import time

import pytest

from gistjax.serving import connection

MILL = {"question": "Who built the mill?"}


@pytest.fixture
def client(start, monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE_S", 0.3)
    return start(seconds=1.0)


def ended(sock, drip=b""):
    """Whether the server ends a connection, whatever is sent on it meanwhile."""
    sock.settimeout(0.05)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            try:
                sock.sendall(drip)
                if not sock.recv(1 << 16):
                    return True
            except ConnectionError:
                return True
    return False


def test_who_says_nothing_or_sends_headers_by_the_byte_is_let_go(client):
    with contextlib.ExitStack() as opened:
        address = ("127.0.0.1", client.port)
        silent = [opened.enter_context(socket.create_connection(address)) for _ in range(100)]
        assert client("GET", "/documents")[0] == 200
        slow = opened.enter_context(socket.create_connection(address))
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        assert ended(slow, b"a") and all(map(ended, silent))
    assert client("GET", "/healthz")[0] == 200


def test_a_body_by_the_byte_is_late(client):
    with socket.create_connection(("127.0.0.1", client.port)) as slow:
        head = "POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
        assert ended(slow, b" ")
    assert 'endpoint="POST /ask",status="504"' in client("GET", "/metrics")[2]


def test_who_reads_no_reply_is_let_go(client):
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.connect(("127.0.0.1", client.port))
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(TimeoutError, ConnectionError):
            deaf.settimeout(2)
            for _ in range(2000):
                deaf.sendall(asked)
        held = client.server.server_state.connections
        end = time.monotonic() + 20
        while held and time.monotonic() < end:
            time.sleep(0.05)
        assert not held


@pytest.mark.usefixtures("client")  # for its short patience
def test_a_request_that_is_answered_is_waited_for(start, held_up):
    patient = start(seconds=20)
    with held_up(patient.worker):
        asked = patient.send("POST", "/ask", MILL)
        patient.await_waiting(1)
        time.sleep(1)  # three looks
    assert asked.getresponse().status == 200
    asked.close()
