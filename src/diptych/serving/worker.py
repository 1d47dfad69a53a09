"""The worker: one thread computes all answers, and encodes the texts that wait together.

One model on few cores gains nothing from several threads. While a batch is computed others wait, and become the next
batch: nobody waits for a batch to fill.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diptych.errors import DiptychError
from diptych.retriever import Encoded
from diptych.serving.filters import Filter
from diptych.serving.following import Following, Served
from diptych.serving.searcher import Hits

if TYPE_CHECKING:
    from PIL import Image

BATCH = 64


class BusyError(DiptychError):
    """Too many requests wait already."""


class UnavailableError(DiptychError):
    """Nothing can be served yet."""


@dataclass(frozen=True)
class Query:
    """What is searched for: a text, an image, or an image of the collection by its row."""

    k: int
    offset: int = 0
    filters: Sequence[Filter] = ()
    rerank: bool = True
    text: str | None = None
    image: Image.Image | None = None
    like: str | None = None
    """SHA-256 of an image of the collection."""


@dataclass(frozen=True)
class Answer:
    """The results of a query, and what found them."""

    served: Served
    hits: Hits
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each step: waiting, encoding, searching."""


class NotInIndexError(DiptychError):
    """There is no such image in the collection."""


@dataclass
class _Waiting:
    query: Query
    future: Future[Answer]
    since: float


class Worker:
    """Thread that answers queries; at most `limit` of them wait.

    Attributes:
        waiting: the queries that wait, for a gauge.
    """

    def __init__(self, following: Following, limit: int) -> None:
        self._following = following
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(limit)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of queries that wait."""
        return self._queue.qsize()

    def submit(self, query: Query) -> Future[Answer]:
        """Return the future answer.

        Raises:
            BusyError: too many queries wait.
        """
        future: Future[Answer] = Future()
        try:
            self._queue.put_nowait(_Waiting(query, future, time.perf_counter()))
        except queue.Full:
            raise BusyError("Too many requests wait; try again in a second.") from None
        return future

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            # A request that was given up need not be computed.
            self._answer([one for one in batch if one.future.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a query, and return it with those that wait behind it; nothing at the end."""
        batch: list[_Waiting] = []
        while not self._ended and len(batch) < BATCH and not (batch and self._queue.empty()):
            one = self._queue.get()
            if one is None:
                self._ended = True
            else:
                batch.append(one)
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        """Answer a batch, all by the model and index that are served at its beginning."""
        served = self._following.served
        started = time.perf_counter()
        try:
            if served is None:
                raise UnavailableError(self._following.problem or "The model is being loaded.")
            encoded = _encode(served, [one.query for one in batch])
        except Exception as error:  # whoever waits must hear of it
            for one in batch:
                one.future.set_exception(error)
            return
        encoding = time.perf_counter() - started
        for one, query in zip(batch, encoded, strict=True):
            try:
                if query is None:
                    raise NotInIndexError(f"The collection has no image {one.query.like}.")
                begun = time.perf_counter()
                hits = served.searcher.search(
                    query,
                    k=one.query.k,
                    offset=one.query.offset,
                    filters=one.query.filters,
                    rerank=one.query.rerank,
                )
                seconds = {
                    "waiting": started - one.since,
                    "encoding": encoding,
                    "searching": time.perf_counter() - begun,
                }
                one.future.set_result(Answer(served, hits, seconds))
            except Exception as error:  # whoever waits must hear of it
                one.future.set_exception(error)


def _encode(served: Served, queries: Sequence[Query]) -> list[Encoded | None]:
    """Return the encoded queries in their order; None for an image that is not in the collection."""
    retriever = served.searcher.retriever
    texts = [query.text for query in queries if query.text is not None]
    images = [query.image for query in queries if query.image is not None]
    tokens = served.searcher.reranks and any(query.rerank for query in queries)
    text = iter(_each(retriever.encode_texts(texts, tokens=tokens)) if texts else ())
    image = iter(_each(retriever.encode_images(images)) if images else ())
    return [
        next(text)
        if query.text is not None
        else next(image)
        if query.image is not None
        else served.searcher.stored(query.like or "")
        for query in queries
    ]


def _each(encoded: Encoded) -> list[Encoded]:
    return [encoded.part(row) for row in range(len(encoded))]
