"""A load test: so many clients ask a server, each its next question when the last is answered.

    python -m launch.load --asked asked.json [--url=http://127.0.0.1:8000] [--clients=256]
        [--requests=50000] [--seconds=60] [--warm_up=2000] [--everywhere] [--processes=4]

The questions are those of `launch.load_store`, drawn in a fixed order and again from the start when
there are no more; each is asked of its page alone, or of the whole store. Works with what answers
`POST /ask` as gistjax does: `gistjax.serve`, `launch/serve_ray.py`, `launch/torch_peer_server.py`.
Prints JSON: requests, those that failed by status, questions a second, seconds until an answer
(a failed one counts with its seconds), F1 and tokens of the answers, the server's device, and the
seconds from the server's start (`--since`) until its first answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import chain, cycle, islice, takewhile
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from absl import flags
from prometheus_client.parser import text_string_to_metric_families

from gistjax.errors import ConfigError
from gistjax.evaluation.metrics import f1
from gistjax.runtime import cli
from gistjax.runtime.arguments import define_path
from launch.asked_file import Question, read_asked

log = logging.getLogger(__name__)

SEED = 0
PATIENCE = aiohttp.ClientTimeout(total=120)
TELL_S = 10


class Reply(NamedTuple):
    """What came of a request."""

    status: str  # of HTTP, or the error's name
    start: float  # seconds, of a clock that all processes share
    end: float
    f1: float = 0.0
    tokens: int = 0


class Load(NamedTuple):
    """What is asked of a server."""

    url: str
    questions: list[Question]
    everywhere: bool  # the whole store, not the question's page
    clients: int
    requests: int
    seconds: float | None = None  # the most

    def parts(self, number: int) -> list[Load]:
        """Return the load in parts, for as many processes."""
        return [
            self._replace(
                questions=self.questions[part::number],
                clients=len(range(part, self.clients, number)),
                requests=len(range(part, self.requests, number)),
            )
            for part in range(number)
        ]


def asked(load: Load) -> Iterator[Question]:
    """Yield the questions to ask, until there were enough or the time is over."""
    questions: Iterator[Question] = islice(cycle(load.questions), load.requests)
    if load.seconds is not None:
        end = time.monotonic() + load.seconds
        questions = takewhile(lambda _: time.monotonic() < end, questions)
    return questions


async def ask(session: aiohttp.ClientSession, load: Load, question: Question) -> Reply:
    """Ask a question, and score its answer."""
    body = {"question": question.text, "within": None if load.everywhere else question.page}
    start = time.monotonic()
    try:
        async with session.post(f"{load.url}/ask", json=body) as reply:
            content = await reply.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        return Reply(type(error).__name__, start, time.monotonic())
    end = time.monotonic()
    if reply.status != 200:
        return Reply(str(reply.status), start, end)
    answer = json.loads(content)["answers"][0]["answer"]
    return Reply("200", start, end, f1(answer["text"], question.golds), answer["tokens"])


async def run_clients(load: Load) -> list[Reply]:
    """Let the clients ask until the questions end."""
    questions, replies = asked(load), list[Reply]()

    async def client(session: aiohttp.ClientSession) -> None:
        for question in questions:
            replies.append(await ask(session, load, question))

    async def progress() -> None:
        while True:
            before = len(replies)
            await asyncio.sleep(TELL_S)
            log.info("%d answered, %.1f a second", len(replies), (len(replies) - before) / TELL_S)

    connector = aiohttp.TCPConnector(limit=0)  # a connection for each client
    async with aiohttp.ClientSession(connector=connector, timeout=PATIENCE) as session:
        telling = asyncio.ensure_future(progress())
        await asyncio.gather(*(client(session) for _ in range(load.clients)))
        telling.cancel()
    return replies


def in_process(load: Load) -> list[Reply]:
    """Run clients in this process."""
    return asyncio.run(run_clients(load))


def run(load: Load, processes: int) -> list[Reply]:
    """Run clients, in several processes if one would be too slow to ask."""
    if processes == 1:
        return in_process(load)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(chain.from_iterable(pool.map(in_process, load.parts(processes))))


async def await_answer(load: Load, seconds: float) -> None:
    """Wait until the first question has an answer.

    Raises:
        ConfigError: if it has none within so many seconds.
    """
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession(timeout=PATIENCE) as session:
        while (reply := await ask(session, load, load.questions[0])).status != "200":
            if time.monotonic() > end:
                raise ConfigError(
                    f"{load.url} does not answer {load.questions[0].text!r} ({reply.status}): "
                    "start the server on the store that was filled with these pages."
                )
            await asyncio.sleep(0.1)


async def device_of(url: str) -> str:
    """Return the device that a server tells of in its metrics; "" if it tells none."""
    async with aiohttp.ClientSession(timeout=PATIENCE) as session:
        with suppress(aiohttp.ClientError, ValueError):
            async with session.get(f"{url}/metrics") as reply:
                for family in text_string_to_metric_families(await reply.text()):
                    for sample in family.samples:
                        if "device" in sample.labels:
                            return sample.labels["device"]
    return ""


def summary(replies: Iterable[Reply]) -> dict[str, Any]:
    """Return the figures of a load test."""
    replies = list(replies)
    right = [reply for reply in replies if reply.status == "200"]
    errors = Counter(reply.status for reply in replies if reply.status != "200")
    seconds = max(reply.end for reply in replies) - min(reply.start for reply in replies)
    latencies = [reply.end - reply.start for reply in replies]
    percentiles = zip(("p50", "p95", "p99", "max"), (50, 95, 99, 100), strict=True)
    return {
        "requests": len(replies),
        "errors": dict(errors),
        "seconds": round(seconds, 3),
        "questions_per_s": round(len(right) / seconds, 2),
        "latency_s": {
            name: round(float(np.percentile(latencies, at)), 4) for name, at in percentiles
        },
        "f1": round(float(np.mean([reply.f1 for reply in right])), 4) if right else None,
        "tokens_an_answer": round(float(np.mean([reply.tokens for reply in right])), 2)
        if right
        else None,
    }


def main(args: flags.FlagValues) -> None:
    """Wait for the server, warm it up, and measure."""
    since = time.time() if args.since is None else args.since
    _, questions = read_asked(Path(args.asked))
    order = np.random.default_rng(SEED).permutation(len(questions))
    shuffled = [questions[place] for place in order]
    url = args.url.rstrip("/")
    load = Load(url, shuffled, args.everywhere, args.clients, args.requests, args.seconds)
    asyncio.run(await_answer(load, args.wait))
    first_answer_s = time.time() - since
    if args.warm_up:
        log.info("warming up: %d requests that are not counted", args.warm_up)
        run(load._replace(requests=args.warm_up, seconds=None), args.processes)
    found = summary(run(load, args.processes))
    cli.print_result(
        {
            "clients": args.clients,
            "asked": "everywhere" if args.everywhere else "within the page",
            **found,
            "first_answer_s": round(first_answer_s, 2),
            "device": asyncio.run(device_of(url)),
        }
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_path("asked", "asked.json", "File of pages and questions (launch.load_store).", values)
    about = "Address of the server."
    flags.DEFINE_string("url", "http://127.0.0.1:8000", about, flag_values=values)
    flags.DEFINE_integer("clients", 256, "Clients that ask at once.", 1, flag_values=values)
    flags.DEFINE_integer("requests", 50_000, "Requests in all.", 1, flag_values=values)
    about = "Seconds after which no more is asked, if that comes first."
    flags.DEFINE_float("seconds", None, about, 0.1, flag_values=values)
    about = "Requests before, which are not counted."
    flags.DEFINE_integer("warm_up", 0, about, 0, flag_values=values)
    about = "Ask the whole store, not the page of the question."
    flags.DEFINE_bool("everywhere", False, about, flag_values=values)
    about = "Processes that the clients are in: one sends some thousand requests a second."
    flags.DEFINE_integer("processes", 1, about, 1, flag_values=values)
    about = "Unix time at which the server was started; by default that of this program."
    flags.DEFINE_float("since", None, about, flag_values=values)
    about = "The most seconds to wait for the server's first answer."
    flags.DEFINE_float("wait", 300.0, about, 0.0, flag_values=values)


if __name__ == "__main__":
    cli.run_bare(main, define_flags)
