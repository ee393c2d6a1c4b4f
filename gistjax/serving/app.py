"""The endpoints: documents, questions, OpenAI's chat, health and metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import Match

import gistjax
from gistjax.data.tasks import written_tokens
from gistjax.errors import CheckpointError, ConfigError, DataError, GistjaxError
from gistjax.inference.store import Told
from gistjax.inference.text import check_text
from gistjax.serving import chat, streams, waiting
from gistjax.serving.forms import (
    QUESTION_CHARACTERS,
    Answered,
    Answers,
    App,
    Documents,
    Kept,
    NewDocument,
    Questions,
    Removed,
    Status,
    Unanswered,
    chat_request,
    errors,
)
from gistjax.serving.guard import BODY_BYTES, PAGE
from gistjax.serving.metrics import Metrics
from gistjax.serving.page import make_page
from gistjax.serving.replies import Refused, error_reply, reply_to, shown
from gistjax.serving.worker import How, Worker


def make_app(worker: Worker, metrics: Metrics) -> FastAPI:
    """Return the endpoints over a worker's store."""
    app = App(
        title="gistjax",
        version=gistjax.__version__,
        description="Documents that are kept compressed, and questions on them.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        max_body_size=BODY_BYTES,
        responses=errors(of_request=False),
    )
    _explain_errors(app)
    page = make_page()

    @app.get(PAGE, include_in_schema=False)
    async def show() -> Response:
        """Show the page for people."""
        return page

    _add_documents(app, worker)
    _add_questions(app, worker)
    _add_chat(app, worker)

    @app.get("/healthz")
    async def healthz() -> Status:
        """Say that the server runs."""
        return Status(status="runs")

    @app.get("/readyz", response_model=Status)
    async def readyz() -> Status | Response:
        """Say whether requests are answered at once: not while it warms up, or stops."""
        if worker.stopping or not worker.is_alive():
            return error_reply(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping.")
        if worker.progress is not None:
            message = "warming up: {} of {} programs.".format(*worker.progress)
            return error_reply(HTTPStatus.SERVICE_UNAVAILABLE, message)
        return Status(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def scrape() -> Response:
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
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods(app, request))
        return error_reply(error.status_code, error.detail, headers=headers)

    @app.exception_handler(GistjaxError)
    @app.exception_handler(Exception)
    async def explained(_: Request, error: Exception) -> Response:
        return reply_to(error)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Return the methods that a path takes: an endpoint knows of its own alone."""
    there = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
    return sorted({method for route in there for method in getattr(route, "methods", ())})


def _add_documents(app: FastAPI, worker: Worker) -> None:
    store = worker.store

    @app.post("/documents", responses=errors(of_request=True))
    async def add(new: NewDocument, request: Request) -> Kept:
        """Keep a text under a name; the one that had it is replaced."""
        added = await waiting.result(request, worker.do(lambda: store.add(new.name, new.text)))
        counts = {"pieces": added.pieces, "compressed": added.compressed}
        return Kept(name=added.name, unchanged=added.unchanged, **counts)

    @app.get("/documents")
    def documents() -> Documents:  # no coroutine: FastAPI runs it in a thread, beside the worker
        """List the documents."""
        return Documents(documents=store.documents())

    @app.delete("/documents/{name:path}", responses=errors(of_request=True))
    async def remove(name: str, request: Request) -> Removed:
        """Remove a document."""
        try:
            await waiting.result(request, worker.do(lambda: store.remove(name)))
        except ConfigError as error:
            raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from error
        return Removed(removed=name)


def _add_questions(app: FastAPI, worker: Worker) -> None:
    @app.post(
        "/ask", response_model=Answers, responses=errors(of_request=True) | streams.DOCUMENTED
    )
    async def ask(asked: Questions, request: Request) -> Answers | Response:
        """Answer a question, or several: of these each has its answer or its error."""
        if (asked.question is None) == (asked.questions is None):
            raise DataError("give either question or questions.")
        questions = [asked.question] if asked.question is not None else asked.questions or []
        how = How(asked.pieces, asked.threshold, asked.reread, asked.within)
        futures = worker.ask(questions, how)
        alone = asked.questions is None

        async def events() -> AsyncGenerator[bytes, None]:
            outcomes = waiting.each(request, futures)
            async with contextlib.aclosing(outcomes):
                async for place, outcome in outcomes:
                    told = _told(questions[place], outcome, alone)
                    yield streams.event({"index": place, **told.model_dump(mode="json")})
            yield streams.DONE

        if asked.stream:
            return await streams.begin(events())
        outcomes = await waiting.results(request, futures)
        pairs = zip(questions, outcomes, strict=True)
        return Answers(answers=[_told(question, outcome, alone) for question, outcome in pairs])


def _told(question: str, outcome: Told | BaseException, alone: bool) -> Answered | Unanswered:
    """Return what is told of a question; raise the error of one alone, and what others have too."""
    if isinstance(outcome, BaseException):
        if alone or not isinstance(outcome, DataError | CheckpointError):
            raise outcome
        return Unanswered(question=question, error=str(outcome))
    return Answered(question=question, **outcome._asdict())


def _add_chat(app: FastAPI, worker: Worker) -> None:
    engine, started = worker.store.engine, int(time.time())
    model, most_tokens = engine.config.model.known_as, written_tokens(engine.config)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the only model, in OpenAI's form."""
        return chat.models(model, started)

    path, body = "/v1/chat/completions", chat_request(model)

    @app.post(
        path,
        response_model=dict[str, Any],
        responses=errors(of_request=True) | streams.DOCUMENTED,
        openapi_extra=body,
    )
    async def complete(body: dict[str, Any], request: Request) -> dict[str, Any] | Response:
        """Answer the user's message from the store, in OpenAI's form."""
        question = check_text(chat.question_of(body, model, most_tokens), "question")
        if len(question) > QUESTION_CHARACTERS:
            about = f"the message has more than {QUESTION_CHARACTERS} characters: shorten it."
            raise Refused(about, "messages")
        tokens = len(engine.pretrained.prompt.encode_question(question))
        (future,) = worker.ask([question], How())

        async def whole() -> dict[str, Any]:
            told = await waiting.result(request, future)
            return chat.completion(told, model, tokens, most_tokens)

        async def events() -> AsyncGenerator[bytes, None]:
            for chunk in chat.chunks(await whole(), chat.tells_usage(body)):
                yield streams.event(chunk)
            yield streams.DONE

        return await streams.begin(events()) if body.get("stream") else await whole()
