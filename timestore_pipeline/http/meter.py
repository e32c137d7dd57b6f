"""What one server process counts of its requests, beside the picture of the ledger that every process shows.

These are counts of a process, in a registry of its own and never pushed: they begin at 0 with it, as Prometheus expects
of what it scrapes from each instance, and a transaction of the ledger for each request would cost more than they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from timestore_pipeline.metrics.series import (
    HTTP_DURATION,
    HTTP_IN_FLIGHT,
    HTTP_REFUSED,
    HTTP_REQUESTS,
    SERVER_SERIES,
)

OTHER = "other"
"""The endpoint of requests to addresses that there are not."""

# A commit takes some milliseconds, and a client is let wait for a minute.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meter:
    """Counts requests by endpoint (method and path, as the OpenAPI document has them)."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        self._registry = CollectorRegistry()
        helps = {each.name: (each.help, each.labels, self._registry) for each in SERVER_SERIES}

        def of(name: str) -> dict:
            text, labels, registry = helps[name]
            return {"documentation": text, "labelnames": labels, "registry": registry}

        self._requests = Counter(HTTP_REQUESTS, **of(HTTP_REQUESTS))
        self._refused = Counter(HTTP_REFUSED, **of(HTTP_REFUSED))
        self._seconds = Histogram(HTTP_DURATION, **of(HTTP_DURATION), buckets=_SECONDS)
        self._in_flight = Gauge(HTTP_IN_FLIGHT, **of(HTTP_IN_FLIGHT))
        for endpoint in endpoints:
            self._seconds.labels(endpoint)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request as in flight for as long as the block runs."""
        with self._in_flight.track_inprogress():
            yield

    def answered(self, endpoint: str, status: int, seconds: float, problem: str | None) -> None:
        """Count an answer; ``problem`` is the kind of one that is no success."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        if problem is not None:
            self._refused.labels(problem).inc()

    def exposition(self) -> bytes:
        """Return the counts in the Prometheus text format."""
        return generate_latest(self._registry)
