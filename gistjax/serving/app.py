"""The endpoints: documents, questions, OpenAI's chat, health and metrics."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException as AnyHTTPException

import gistjax
from gistjax.data.tasks import written_tokens
from gistjax.errors import CheckpointError, ConfigError, DataError, GistjaxError
from gistjax.inference.store import MOST_PIECES
from gistjax.inference.store_index import PIECES
from gistjax.inference.text import check_text
from gistjax.serving import chat
from gistjax.serving.guard import BODY_BYTES
from gistjax.serving.metrics import Metrics
from gistjax.serving.replies import Refused, error_reply, reply_to, shown
from gistjax.serving.worker import MOST_QUESTIONS, How, Worker

T = TypeVar("T")
CLIENT_LEFT = 499
"""Status of a request whose client went away, as nginx counts it."""

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

    model_config = ConfigDict(extra="forbid", strict=True)
    question: Question | None = None
    questions: SeveralQuestions | None = None
    pieces: Annotated[int, Field(ge=1, le=MOST_PIECES)] = PIECES
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    within: Name | None = None


def make_app(worker: Worker, metrics: Metrics) -> FastAPI:
    """Return the endpoints over a worker's store."""
    app = FastAPI(
        title="gistjax",
        version=gistjax.__version__,
        description="Documents that are kept compressed, and questions on them.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        max_body_size=BODY_BYTES,
    )
    _explain_errors(app)
    _add_documents(app, worker)
    _add_questions(app, worker)
    _add_chat(app, worker)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the server runs."""
        return {"status": "runs"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Say whether it takes requests."""
        if worker.stopping or not worker.is_alive():
            return error_reply(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping.")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def page() -> Response:
        """Return what Prometheus reads."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return app


def _explain_errors(app: FastAPI) -> None:
    """Reply to errors in one form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = shown(".".join(map(str, first["loc"][1:])))
        if not where or first["type"] == "json_invalid":
            message = "the body must be a JSON object, sent as application/json."
            return error_reply(HTTPStatus.BAD_REQUEST, message)
        return error_reply(HTTPStatus.BAD_REQUEST, f"{where}: {first['msg']}.", where)

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> Response:
        headers = dict(error.headers) if error.headers else None
        return error_reply(error.status_code, error.detail, headers=headers)

    @app.exception_handler(GistjaxError)
    @app.exception_handler(Exception)
    async def explained(_: Request, error: Exception) -> Response:
        return reply_to(error)


def _add_documents(app: FastAPI, worker: Worker) -> None:
    store = worker.store

    @app.post("/documents")
    async def add(new: NewDocument, request: Request) -> dict[str, Any]:
        """Keep a text under a name; the one that had it is replaced."""
        added = await _result(request, worker.do(lambda: store.add(new.name, new.text)))
        counts = {"pieces": added.pieces, "compressed": added.compressed}
        return {"name": added.name, "unchanged": added.unchanged, **counts}

    @app.get("/documents")
    async def documents(request: Request) -> dict[str, Any]:
        """List the documents."""
        held = await _result(request, worker.do(store.documents))
        return {"documents": [dataclasses.asdict(one) for one in held]}

    @app.delete("/documents/{name:path}")
    async def remove(name: str, request: Request) -> dict[str, str]:
        """Remove a document."""
        try:
            await _result(request, worker.do(lambda: store.remove(name)))
        except ConfigError as error:
            raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from error
        return {"removed": name}


def _add_questions(app: FastAPI, worker: Worker) -> None:
    @app.post("/ask")
    async def ask(asked: Questions, request: Request) -> dict[str, Any]:
        """Answer a question, or several: of these each has its answer or its error."""
        if (asked.question is None) == (asked.questions is None):
            raise DataError("give either question or questions.")
        questions = [asked.question] if asked.question is not None else asked.questions or []
        how = How(asked.pieces, asked.threshold, asked.within)
        results = await _results(request, worker.ask(questions, how))
        answers = []
        for question, result in zip(questions, results, strict=True):
            if isinstance(result, BaseException):
                of_question = isinstance(result, DataError | CheckpointError)
                if asked.questions is None or not of_question:
                    raise result
                answers.append({"question": question, "error": str(result)})
            else:
                answers.append({"question": question, **result.to_json()})
        return {"answers": answers}


def _add_chat(app: FastAPI, worker: Worker) -> None:
    engine, started = worker.store.engine, int(time.time())
    model, most_tokens = engine.config.model.known_as, written_tokens(engine.config)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the only model, in OpenAI's form."""
        return chat.models(model, started)

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any], request: Request) -> dict[str, Any]:
        """Answer the user's message from the store, in OpenAI's form."""
        question = check_text(chat.question_of(body, model, most_tokens), "question")
        if len(question) > QUESTION_CHARACTERS:
            about = f"the message has more than {QUESTION_CHARACTERS} characters: shorten it."
            raise Refused(about, "messages")
        told = await _result(request, *worker.ask([question], How()))
        tokens = len(engine.pretrained.prompt.encode_question(question))
        return chat.completion(told, model, tokens, most_tokens)


async def _result(request: Request, future: Future[T]) -> T:
    """Return what comes of one thing, or raise its error."""
    (result,) = await _results(request, [future])
    if isinstance(result, BaseException):
        raise result
    return result


async def _results(request: Request, futures: Sequence[Future[T]]) -> list[T | BaseException]:
    """Return what comes of each thing; those whose turn has not come are dropped with the request.

    Raises:
        HTTPException: if the client goes away.
    """
    everything = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    leaving = asyncio.ensure_future(_left(request))
    both: set[asyncio.Future[Any]] = {everything, leaving}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not everything.done():
            leaving.result()  # a body that is too long, if that is what ended it
            raise HTTPException(CLIENT_LEFT, "the client went away.")
        return everything.result()
    finally:
        for future in futures:
            future.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    """Wait until the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
