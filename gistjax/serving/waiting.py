"""What comes of what the worker was given; it is dropped where nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from gistjax.errors import BusyError

T = TypeVar("T")


async def result(request: Request, future: Future[T]) -> T:
    """Return what comes of one thing, or raise its error."""
    (found,) = await results(request, [future])
    if isinstance(found, BaseException):
        raise found
    return found


async def results(request: Request, futures: Sequence[Future[T]]) -> list[T | BaseException]:
    """Return what comes of each thing.

    Raises:
        ClientDisconnect: as `each`.
    """
    found = {place: outcome async for place, outcome in each(request, futures)}
    return [found[place] for place in range(len(futures))]


async def each(
    request: Request, futures: Sequence[Future[T]]
) -> AsyncGenerator[tuple[int, T | BaseException], None]:
    """Yield the place of each thing and what comes of it, as soon as it is there.

    Things whose turn has not come are dropped with the request.

    Raises:
        ClientDisconnect: if the client goes away.
    """
    waited: list[asyncio.Future[T]] = [asyncio.wrap_future(future) for future in futures]
    places = {one: place for place, one in enumerate(waited)}
    leaving = asyncio.ensure_future(_left(request))
    try:
        while places:
            both: set[asyncio.Future[Any]] = {*places, leaving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            done = [one for one in places if one.done()]
            for one in done:
                yield places.pop(one), _outcome(one)
            if not done:
                leaving.result()  # a body that is too long, if that is what ended it
                raise ClientDisconnect
    finally:
        leaving.cancel()
        for future, one in zip(futures, waited, strict=True):
            future.cancel()
            one.cancel()  # so that nobody has to look at what comes of it


def _outcome(done: asyncio.Future[Any]) -> Any:
    """Return what came of a thing, or its error."""
    if done.cancelled():  # the worker has ended
        return BusyError("the server is stopping: ask again when it is back.")
    return done.exception() or done.result()


async def _left(request: Request) -> None:
    """Wait until the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
