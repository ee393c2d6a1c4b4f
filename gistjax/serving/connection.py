"""A connection that ends when its client neither sends a request nor reads the reply."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_S = 10.0
"""Seconds between two looks at a connection: one that stood still meanwhile is ended."""


class Connection(H11Protocol):
    """HTTP over a connection, whose headers have to come, and whose replies have to be read, soon.

    While a request is answered, its body included, the time of requests is the limit (`Guard`).
    h11 refuses headers of more than 64 KiB.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to look at it."""
        super().connection_made(transport)
        self._look = self._later((None, False, 0))

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._look.cancel()
        super().connection_lost(exc)

    def _later(self, seen: tuple[object, bool, int]) -> asyncio.TimerHandle:
        return self.loop.call_later(PATIENCE_S, self._check, seen)

    def _check(self, before: tuple[object, bool, int]) -> None:
        """End it if since the last look no request has begun, or a reply waits and none is read."""
        request, unread = self.cycle, self.transport.get_write_buffer_size()
        answering = request is not None and not request.response_complete
        now = (request, answering, unread)
        if now == before and (unread or not answering):
            self.transport.abort()  # unlike close, it does not wait for a client that reads nothing
        else:
            self._look = self._later(now)
