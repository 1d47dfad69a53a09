"""The worker: one thread computes all answers, and encodes the texts that wait together.

One model on few cores gains nothing from several threads. While a batch is computed others wait, and become the next
batch: nobody waits for a batch to fill.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.errors import DiptychError
from diptych.retriever import Encoded
from diptych.serving.filters import Filter
from diptych.serving.following import Following, Served
from diptych.serving.searcher import Hits

if TYPE_CHECKING:
    from PIL import Image

BATCH = 64
T = TypeVar("T")


class BusyError(DiptychError):
    """Too many requests wait already."""


class UnavailableError(DiptychError):
    """Nothing can be served yet."""


@dataclass(frozen=True)
class Query:
    """A text, an image, or an image of the collection by its SHA-256, and the part of its results to return."""

    k: int
    offset: int = 0
    filters: Sequence[Filter] = ()
    rerank: bool = True
    text: str | None = None
    image: Image.Image | None = None
    like: str | None = None
    """SHA-256 of an image of the collection."""
    interim: bool = False
    """Whether the text is still being typed."""

    @property
    def counted_text(self) -> str | None:
        """The text, if the profile of queries counts it: whole, and for its first results, which are asked for once."""
        return None if self.interim or self.offset else self.text


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
    """A query that waits, or another computation."""

    query: Query | Callable[[Served], Any]
    future: Future[Any]
    since: float


class Worker:
    """Thread that answers queries; at most `limit` of them wait."""

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
        return self._put(query)

    def compute(self, function: Callable[[Served], T]) -> Future[T]:
        """Return the future result of a computation with what is served then.

        Raises:
            BusyError: too many queries wait.
        """
        return self._put(function)

    def _put(self, query: Query | Callable[[Served], Any]) -> Future[Any]:
        future: Future[Any] = Future()
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
        started = time.perf_counter()
        try:
            served = require_served(self._following)
            queries = [waiting.query for waiting in batch if isinstance(waiting.query, Query)]
            encoded = iter(_encode(served, queries))
        except Exception as error:  # whoever waits must hear of it
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        encoding = time.perf_counter() - started
        for waiting in batch:
            try:
                if isinstance(waiting.query, Query):
                    seconds = {"waiting": started - waiting.since, "encoding": encoding}
                    waiting.future.set_result(_search(served, waiting.query, next(encoded), seconds))
                else:
                    waiting.future.set_result(waiting.query(served))
            except Exception as error:  # whoever waits must hear of it
                waiting.future.set_exception(error)


def require_served(following: Following) -> Served:
    """Return the model and the index that answer now.

    Raises:
        UnavailableError: there are none yet.
    """
    if following.served is None:
        raise UnavailableError(following.problem or "The model is being loaded.")
    return following.served


def require_row(served: Served, digest: str) -> int:
    """Return the row of an image of the collection.

    Raises:
        NotInIndexError: there is no such image.
    """
    row = served.index.row_of(digest)
    if row is None:
        raise NotInIndexError(f"The collection has no image {digest[:64]!r}.")
    return row


def _search(served: Served, query: Query, encoded: Encoded | None, seconds: dict[str, float]) -> Answer:
    started = time.perf_counter()
    if encoded is None:
        raise NotInIndexError(f"The collection has no image {(query.like or '')[:64]!r}.")
    hits = served.searcher.search(encoded, k=query.k, offset=query.offset, filters=query.filters, rerank=query.rerank)
    if query.counted_text is not None and served.queries is not None:
        served.queries.add(query.counted_text, encoded.embedding[0])
    return Answer(served, hits, {**seconds, "searching": time.perf_counter() - started})


def _encode(served: Served, queries: Sequence[Query]) -> list[Encoded | None]:
    """Return the encoded queries in their order, texts and images each in one batch.

    An image of the collection is encoded already; it is None where the collection has no such image.
    """
    retriever = served.searcher.retriever
    texts = [query.text for query in queries if query.text is not None]
    images = [query.image for query in queries if query.image is not None]
    tokens = served.searcher.reranks and any(query.rerank for query in queries)
    text = iter(_each(retriever.encode_texts(texts, tokens=tokens)) if texts else ())
    image = iter(_each(retriever.encode_images(images)) if images else ())
    encoded: list[Encoded | None] = []
    for query in queries:
        if query.text is not None:
            encoded.append(next(text))
        elif query.image is not None:
            encoded.append(next(image))
        else:
            encoded.append(served.searcher.stored(query.like or ""))
    return encoded


def _each(encoded: Encoded) -> list[Encoded]:
    return [encoded.part(row) for row in range(len(encoded))]
