"""Replies that are sent in parts: server-sent events, in the form that OpenAI's clients read."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from gistjax.serving.replies import reply_to

MEDIA_TYPE = "text/event-stream"
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK: {"content": {MEDIA_TYPE: {"itemSchema": _EVENT}}}
}
"""What OpenAPI tells of it."""
DONE = b"data: [DONE]\n\n"
"""The last event of a reply that is whole."""


def event(data: Any) -> bytes:
    """Return an event."""
    return _event(JSONResponse(data))


def _event(reply: JSONResponse) -> bytes:
    return b"data: " + bytes(reply.body) + b"\n\n"


def breaking_off(reply: JSONResponse) -> Message:
    """Return the end of a reply that something keeps from being whole: the error, as an event."""
    return {"type": "http.response.body", "body": _event(reply)}


async def begin(events: AsyncGenerator[bytes, None]) -> StreamingResponse:
    """Return a reply of events, once there is the first: an error before it has its own status."""
    return _Events(await anext(events), events)


class _Events(StreamingResponse):
    """Sends events as they come, and an error as the last of them."""

    media_type = MEDIA_TYPE

    def __init__(self, first: bytes, more: AsyncGenerator[bytes, None]):
        unbuffered = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # by proxies
        super().__init__(_joined(first, more), headers=unbuffered)
        self._more = more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all; whoever makes the events looks for a client that goes away."""
        async with contextlib.aclosing(self._more):
            try:
                await self.stream_response(send)
            except ClientDisconnect:
                raise
            except Exception as error:
                await send(breaking_off(reply_to(error)))


async def _joined(first: bytes, more: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for one in more:
        yield one
