"""What is taken and given as JSON, as `/openapi.json` documents it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gistjax.inference.document import Answer
from gistjax.inference.store import MOST_PIECES
from gistjax.inference.store_index import PIECES, Held, Piece
from gistjax.serving.guard import BODY_BYTES
from gistjax.serving.replies import CLIENT_LEFT, RETRY_S
from gistjax.serving.worker import MOST_QUESTIONS

Name = Annotated[str, StringConstraints(max_length=1024)]
QUESTION_CHARACTERS = 10_000
Question = Annotated[str, StringConstraints(max_length=QUESTION_CHARACTERS)]
SeveralQuestions = Annotated[list[Question], Field(min_length=1, max_length=MOST_QUESTIONS)]


class NewDocument(BaseModel):
    """A text to keep under a name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Name
    text: str


class Questions(BaseModel):
    """One question, or several."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"questions": ["Who built the mill?"], "stream": True}]},
    )
    question: Question | None = None
    questions: SeveralQuestions | None = None
    pieces: Annotated[int, Field(ge=1, le=MOST_PIECES)] = PIECES
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    reread: Annotated[float, Field(ge=0, le=1)] | None = None
    within: Name | None = None
    stream: bool = False  # each answer as soon as it is there, as server-sent events


def chat_request(model: str) -> dict[str, Any]:
    """Return what OpenAPI adds about the body of a chat request; `chat.question_of` checks it.

    Args:
        model: the only one that there is.
    """
    text = {"type": "string", "maxLength": QUESTION_CHARACTERS}
    message = {"role": {"const": "user"}, "content": {"anyOf": [text, {"type": "array"}]}}
    turn = {"type": "object", "properties": message, "required": ["role", "content"]}
    turns = {"type": "array", "items": turn, "minItems": 1, "maxItems": 1}
    properties = {"model": {"const": model}, "messages": turns}
    turn = {"role": "user", "content": "Who built the mill?"}
    example = {"model": model, "messages": [turn], "stream": True}
    schema = {"properties": properties, "required": ["model", "messages"], "examples": [example]}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


class Status(BaseModel):
    """How the server is."""

    status: str


class Kept(BaseModel):
    """What became of a text."""

    name: str
    unchanged: bool
    pieces: int
    compressed: int  # of these: the others were there


class Documents(BaseModel):
    """The documents of a store."""

    documents: list[Held]


class Removed(BaseModel):
    """The name of a document that was removed."""

    removed: str


class Answered(BaseModel):
    """A question, its answer and the pieces that it is from."""

    question: str
    answer: Answer
    pieces: tuple[Piece, ...]
    reread: bool  # from the texts, since the first answer was unsure


class Unanswered(BaseModel):
    """A question among several, and why it has no answer."""

    question: str
    error: str


class Answers(BaseModel):
    """What came of each question, in their order."""

    answers: list[Answered | Unanswered]


class Problem(BaseModel):
    """What is wrong, in the form that OpenAI's clients read."""

    message: str
    type: str
    param: str | None  # which part of the request is at fault
    code: str | None


class Error(BaseModel):
    """Any reply that is no success."""

    error: Problem


RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
ERRORS: dict[int, dict[str, Any]] = {
    HTTPStatus.BAD_REQUEST: {"description": "The request is at fault."},
    HTTPStatus.UNAUTHORIZED: {"description": "The token is missing or wrong."},
    HTTPStatus.FORBIDDEN: {"description": "The page of another site asks (Host, Origin)."},
    HTTPStatus.NOT_FOUND: {"description": "There is no such document or model."},
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: {"description": f"More than {BODY_BYTES} bytes."},
    CLIENT_LEFT: {"description": "The client went away: counted, and told to nobody."},
    HTTPStatus.INTERNAL_SERVER_ERROR: {"description": "The store is damaged, or gistjax is wrong."},
    HTTPStatus.SERVICE_UNAVAILABLE: {
        "description": "Too much waits, memory or disk fail, or the server is stopping. "
        f"Where it helps to wait, `Retry-After` says {RETRY_S}.",
        "headers": RETRY,
    },
    HTTPStatus.GATEWAY_TIMEOUT: {"description": "It took too long."},
}
OF_REQUEST = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)
"""What only an endpoint that takes something replies."""


def errors(*, of_request: bool) -> dict[int | str, dict[str, Any]]:
    """Return the errors of endpoints, those that may be a request's fault too or the others."""
    return {
        status: about | {"model": Error}
        for status, about in ERRORS.items()
        if (status in OF_REQUEST) == of_request
    }


class App(FastAPI):
    """Documents the errors that there are: what FastAPI would reply with 422 is 400 here."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI of the endpoints."""
        made = self.openapi_schema is not None
        described = super().openapi()
        if not made:
            for path in described["paths"].values():
                for endpoint in path.values():
                    endpoint["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                described["components"]["schemas"].pop(name, None)
        return described
