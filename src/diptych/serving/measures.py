"""Metrics of a server, in Prometheus' text format."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from diptych.retrieval.calibration import GOOD
from diptych.serving.following import Following
from diptych.serving.worker import Answer, Worker

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Measures:
    """Counters and histograms of one server."""

    def __init__(self, following: Following, worker: Worker) -> None:
        self._following = following
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "diptych_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "diptych_search_seconds",
            "Time of each step of a search.",
            ["step"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._weak = Counter(
            "diptych_weak_matches", "Searches by a text without a good match.", registry=self._registry
        )
        waiting = Gauge("diptych_waiting", "Searches that wait.", registry=self._registry)
        waiting.set_function(lambda: worker.waiting)
        self._served = Gauge(
            "diptych_served",
            "1 for the model that answers.",
            ["model", "sha256", "collection"],
            registry=self._registry,
        )
        self._index = Gauge(
            "diptych_index",
            "Images, version, seconds since it is served.",
            ["what"],
            registry=self._registry,
        )
        self._up_to_date = Gauge(
            "diptych_up_to_date", "0 if a newer model or index could not be served.", registry=self._registry
        )

    def count(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def observe(self, answer: Answer) -> None:
        """Count the steps of a search."""
        for step, seconds in answer.seconds.items():
            self._latency.labels(step).observe(seconds)
        if answer.hits.probability is not None and answer.hits.probability < GOOD:
            self._weak.inc()

    def text(self) -> bytes:
        """Return all measures as they are now."""
        served = self._following.served
        self._served.clear()
        self._up_to_date.set(not self._following.problem)
        if served is not None:
            self._served.labels(served.model.title, served.model.sha256[:16], served.index.collection).set(1)
            for name, value in (
                ("images", len(served.index)),
                ("version", served.index_version),
                ("served_seconds", time.time() - self._following.since),
            ):
                self._index.labels(name).set(value)
        return generate_latest(self._registry)
