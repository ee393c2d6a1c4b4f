"""A client of a server that runs in this process."""

import contextlib
import http.client
import json
import time


class Client:
    """Sends requests to a server in this process."""

    def __init__(self, server, port):
        self.server, self.worker, self.port = server, server.worker, port

    def send(self, method, path, body=None, **headers):
        """The connection, with a request on its way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        if isinstance(body, dict):
            body, headers = json.dumps(body), {"Content-Type": "application/json"} | headers
        connection.request(method, path, body, headers)
        return connection

    def __call__(self, *request, **headers):
        """Status, headers and body of a reply."""
        with contextlib.closing(self.send(*request, **headers)) as connection:
            reply = connection.getresponse()
            text = reply.read().decode()
            is_json = "json" in reply.headers["Content-Type"]
            return reply.status, reply.headers, json.loads(text) if is_json else text

    def await_waiting(self, number):
        wait_for(lambda: self.worker.waiting == number)


def wait_for(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
