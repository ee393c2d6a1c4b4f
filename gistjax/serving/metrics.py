"""What Prometheus reads. No label has a name, a text or a question."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from gistjax.inference.asking import BATCHES

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gistjax_requests",
            "Requests that ended, by endpoint and status.",
            ("endpoint", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "gistjax_request_seconds",
            "Seconds from a request's first byte to the end of its reply.",
            ("endpoint",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "gistjax_batch_questions",
            "Questions that were answered together; their sum is that of all questions.",
            buckets=BATCHES,
            registry=self.registry,
        )

    def describe(self, device: str) -> None:
        """Tell also what the server computes on."""
        about = "What the server computes on."
        Info("gistjax", about, registry=self.registry).info({"device": device})

    def watch(self, waiting: Callable[[], int]) -> None:
        """Tell also how many questions wait."""
        about = "Questions, and documents to add or remove, that wait."
        Gauge("gistjax_waiting", about, registry=self.registry).set_function(waiting)

    def count_batch(self, questions: int) -> None:
        """Count a batch of questions."""
        self._batches.observe(questions)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def page(self) -> bytes:
        """Return what Prometheus reads."""
        return generate_latest(self.registry)
