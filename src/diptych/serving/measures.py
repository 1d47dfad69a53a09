"""Metrics of a server, in Prometheus' text format."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from diptych.drift.queries import QueryDrift
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
        self._queries = _QueryGauges(self._registry)

    def count(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def observe(self, answer: Answer) -> None:
        """Count the steps of a search."""
        for step, seconds in answer.seconds.items():
            self._latency.labels(step).observe(seconds)
        if answer.hits.probability is not None and answer.hits.probability < GOOD:
            self._weak.inc()

    def query_drift(self) -> QueryDrift | None:
        """Return the distances of the queries, as `ServedQueries.drift` does; None where they cannot be compared."""
        served = self._following.served
        return None if served is None or served.queries is None else served.queries.drift()

    def text(self, drift: QueryDrift | None) -> bytes:
        """Return all measures as they are now; `drift` is what `query_drift` has returned."""
        self._queries.set(drift)
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


class _QueryGauges:
    """Drift of the queries. The gauges have no values where it cannot be measured."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str, label: str) -> Gauge:
            return Gauge(f"diptych_{name}", meaning, [label], registry=registry)

        self._number = gauge("queries", "Searches by a text, and the different texts that are compared.", "what")
        self._words = gauge("query_words", "Mean number of words: of queries, and of training captions.", "of")
        self._unknown = gauge("query_unknown_words", "Share of words that training captions lack.", "of")
        self._distance = gauge("query_distance", "Distance of queries from training captions, 0 to 1.", "statistic")
        self._explained = gauge("query_distance_by_chance", "Distance that chance explains.", "statistic")
        self._drifted = gauge("query_drifted", "1 if the distance is drift.", "statistic")

    def set(self, drift: QueryDrift | None) -> None:
        """Take the values of `drift`."""
        for gauge in (self._number, self._words, self._unknown, self._distance, self._explained, self._drifted):
            gauge.clear()
        if drift is None:
            return
        self._number.labels("searches").set(drift.texts)
        self._number.labels("compared").set(drift.compared)
        for distance in drift.distances:
            self._distance.labels(distance.name).set(distance.distance)
            self._explained.labels(distance.name).set(distance.explained)
            self._drifted.labels(distance.name).set(distance.drifted)
        if drift.compared:
            for of, wording in (("queries", drift.queries), ("captions", drift.captions)):
                self._words.labels(of).set(wording.words)
                self._unknown.labels(of).set(wording.unknown)
