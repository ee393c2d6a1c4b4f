"""Who may ask, and for how long: in front of all endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, urlsplit

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gistjax.serving.metrics import Metrics
from gistjax.serving.replies import CLIENT_LEFT, error_reply, reply_to
from gistjax.serving.streams import breaking_off

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODY_BYTES = 1 << 20
LAST_WORD_S = 1.0
"""Seconds in which a client has to take the error that ends a stream."""
OPEN = {"/healthz", "/readyz"}
"""What may be asked by anyone: it tells nothing of the store."""
PAGE = "/"
"""What needs no token: it tells nothing either, and asks for the token."""


class Guard:
    """Passes on the requests that may be answered, ends those that take too long, and counts all.

    A page of another site can make a browser send requests here. It shows in `Origin`, or, if the
    site's name was made to lead here (DNS rebinding), in `Host`.

    Args:
        names: by which this machine may be called, besides those of loopback.
        token: which requests must have as `Authorization: Bearer TOKEN`; none if it is empty.
        seconds: the most that a request may take, its body included.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, names: Iterable[str], token: str, seconds: float
    ):
        self._app, self._metrics, self._seconds = app, metrics, seconds
        self._names = {name.lower() for name in (*LOOPBACK, *names)}
        self._token = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":  # that a server starts or stops is no request
            return await self._app(scope, receive, send)
        start, status, begun, more = time.monotonic(), 0, False, False

        async def watched(message: Message) -> None:
            nonlocal status, begun, more
            begun = True
            await send(message)
            status, more = message.get("status", status), message.get("more_body", False)

        try:
            reply = self._refuse(scope)
            async with asyncio.timeout(self._seconds) as limit:
                await (reply or self._app)(scope, receive, watched)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:
            late = f"it took longer than {self._seconds:g} s: ask less at once, or later."
            told = error_reply(HTTPStatus.GATEWAY_TIMEOUT, late)
            if not begun:
                reply = told if limit.expired() else reply_to(error)
                await reply(scope, receive, watched)
            elif more and limit.expired():
                status = told.status_code
                with contextlib.suppress(TimeoutError):  # of a client that reads nothing
                    await asyncio.wait_for(send(breaking_off(told)), LAST_WORD_S)
        finally:
            self._metrics.count_request(endpoint_of(scope), status, time.monotonic() - start)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        """Return the reply to a request that may not be answered."""
        if scope["path"] in OPEN:
            return None
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        host, origin = (_only(headers, name) for name in (b"host", b"origin"))
        if _split(f"//{host}").hostname not in self._names:
            message = "the Host header has none of this server's names: add it with --name."
            return error_reply(HTTPStatus.FORBIDDEN, message)
        if b"origin" in headers and _split(origin).netloc.lower() != host.lower():
            message = "a page of another site may not ask this server (Origin)."
            return error_reply(HTTPStatus.FORBIDDEN, message)
        given = _only(headers, b"authorization").encode("latin-1")
        needed = self._token and scope["path"] != PAGE
        if needed and not hmac.compare_digest(given, self._token):
            message = "the token is missing or wrong: send Authorization: Bearer TOKEN."
            scheme = {"WWW-Authenticate": "Bearer"}
            return error_reply(HTTPStatus.UNAUTHORIZED, message, headers=scheme)
        length = _only(headers, b"content-length")
        if length.isdigit() and int(length) > BODY_BYTES:
            message = f"the body has more than {BODY_BYTES} bytes: send it in parts."
            return error_reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return None


def _only(headers: dict[bytes, list[bytes]], name: bytes) -> str:
    """Return the value of a header, and "" if it is missing or given twice."""
    values = headers.get(name, [])
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _split(url: str) -> SplitResult:
    """Return the parts of an address; those of one that is none are empty."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def endpoint_of(scope: Scope) -> str:
    """Return the endpoint that a request went to, of which there are few: the label of a metric."""
    route: Any = scope.get("route")
    known = route is not None and scope["method"] in (route.methods or ())
    return f"{scope['method']} {route.path}" if known else "none"
