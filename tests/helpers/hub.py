"""A hub of one's own: the few addresses of the real one that a download asks, on this machine."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
ERRORS = {"missing": (404, "RepoNotFound"), "gated": (403, "GatedRepo")}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path).lstrip("/")
        hub.asked.append(path)
        kind, *rest = path.removeprefix("api/models/").split("/")
        repo, rest = f"{kind}/{rest[0]}", rest[1:]
        if repo not in hub.repos:
            return self._send(*ERRORS["gated" if repo == hub.gated else "missing"])
        folder = hub.repos[repo]
        if rest[1] not in ("main", COMMIT):
            return self._send(404, "RevisionNotFound")
        if rest[0] == "revision":
            return self._json({"id": repo, "sha": COMMIT, "siblings": []})
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        if rest[0] == "tree":
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                    for name, content in files.items()
                ]
            )
        if rest[2] not in files:
            return self._send(404, "EntryNotFound")
        content = files[rest[2]]
        about = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
        self._send(200, content=content, body=body, **about)

    def _json(self, value):
        self._send(200, content=json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, code, error="", content=b"", body=True, **headers):
        self.send_response(code)
        if error:
            headers |= {"X-Error-Code": error, "X-Error-Message": error}
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _digest(content):
    return hashlib.sha1(content).hexdigest()


class Hub:
    """Repositories by their names, each a folder; and what was asked of them."""

    def __init__(self, gated=""):
        self.repos, self.gated, self.asked = {}, gated, []


@contextlib.contextmanager
def serve(hub):
    """Serve a hub in a `with` block; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.hub = hub
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
