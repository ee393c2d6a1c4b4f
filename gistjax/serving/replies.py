"""Errors as replies, in the form that OpenAI's clients read: `{"error": {"message": …}}`."""

from __future__ import annotations

import logging
import traceback
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from gistjax.errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    DataError,
    GistjaxError,
    InUseError,
)
from gistjax.runtime import cli

log = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""Status of a request whose client went away, as nginx counts it."""
RETRY_S = 1
"""Seconds after which a client that was sent away may try again."""


def shown(name: object) -> str:
    """Return the beginning of what a client called something, in ASCII."""
    return str(name)[:60].encode("ascii", "backslashreplace").decode()


class Refused(ConfigError):
    """A parameter of a request is not honoured.

    Args:
        parameter: its name.
        code: OpenAI's word for the mistake, if it has one.
    """

    def __init__(self, message: str, parameter: str, code: str | None = None):
        super().__init__(message)
        self.parameter, self.code = parameter, code


def error_reply(
    status: int,
    message: str,
    parameter: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return an error as a reply."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": parameter, "code": code}
    return JSONResponse({"error": error}, status, headers)


def reply_to(error: Exception) -> JSONResponse:
    """Return the reply to an error: 400 if the request is at fault, 503 if the machine is.

    500 if the store is damaged, or gistjax is at fault. The log has an error's kind, and of a
    mistake its place in the code: a message may have a document's text.
    """
    if isinstance(error, ClientDisconnect):
        return error_reply(CLIENT_LEFT, "the client went away.")
    if isinstance(error, Refused):
        status = HTTPStatus.NOT_FOUND if error.code else HTTPStatus.BAD_REQUEST
        return error_reply(status, str(error), error.parameter, error.code)
    if isinstance(error, DataError | ConfigError):
        return error_reply(HTTPStatus.BAD_REQUEST, str(error))
    if isinstance(error, BusyError | InUseError):
        status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_S)}
        writes = "another process writes to the store: try again."
        about = writes if isinstance(error, InUseError) else str(error)
        return error_reply(status, about, headers=headers)
    message, _ = cli.explain(error)
    if message is not None:
        log.error("%s", type(error).__name__)
        if not isinstance(error, GistjaxError):
            message = "the machine has not the memory or room for it: ask less at once."
        damaged = isinstance(error, CheckpointError)
        status = HTTPStatus.INTERNAL_SERVER_ERROR if damaged else HTTPStatus.SERVICE_UNAVAILABLE
        return error_reply(status, message)
    place = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s, a mistake in gistjax:\n%s", type(error).__name__, place)
    return error_reply(
        HTTPStatus.INTERNAL_SERVER_ERROR, "a mistake in gistjax: see the server's log."
    )
