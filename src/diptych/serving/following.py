"""The model that is served, with the index that was made by it. Both change together, between two requests."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from diptych.errors import DiptychError
from diptych.retriever import Retriever
from diptych.serving.index import Index
from diptych.serving.queries import ServedQueries
from diptych.serving.searcher import Searcher
from diptych.serving.store import Store

log = logging.getLogger(__name__)


class ModelKey(NamedTuple):
    """Identity of a model."""

    title: str
    """Name and version, for people."""
    sha256: str
    """SHA-256 of its files, which are its weights, its configuration and its tokenizer."""
    number: str
    """Number of its version; empty where it is a folder."""


class Models(Protocol):
    """Source of the model that is to be served."""

    def current(self) -> ModelKey:
        """Return the model that is to be served now.

        Raises:
            DiptychError: there is none, or it cannot be asked for.
        """

    def load(self, key: ModelKey) -> Retriever:
        """Load the model.

        Raises:
            DiptychError: it cannot be fetched.
        """

    def queries(self, key: ModelKey) -> ServedQueries | None:
        """Return the profile of the model's queries; None where the captions that it learned from are not known."""


@dataclass(frozen=True)
class Served:
    """A model and the index that was made by it."""

    model: ModelKey
    searcher: Searcher
    queries: ServedQueries | None = None
    """Profile of its queries; None where there is nothing to compare them with."""

    @property
    def index(self) -> Index:
        """The index."""
        return self.searcher.index

    @property
    def index_version(self) -> int:
        """Version of the index's table."""
        return self.index.state.version


class Following:
    """The model and index that are served at present, kept up to date with the registry and the store.

    Attributes:
        served: the model and index that answer now; None before the first.
        problem: why a newer one is not served; empty if all is up to date.
        since: time since which `served` answers, in seconds since 1970.
    """

    def __init__(self, models: Models, store: Store, collection: str) -> None:
        self._models, self._store, self._collection = models, store, collection
        self.served: Served | None = None
        self.problem = ""
        self.since = 0.0

    def refresh(self) -> bool:
        """Serve the present model and index if both are whole; return whether that is a change.

        Otherwise what was served goes on, and `problem` says why.
        """
        try:
            newer = self._newer()
        except DiptychError as error:
            if str(error) != self.problem:
                log.warning("%s", error)
            self.problem = str(error)
            return False
        except Exception as error:  # a server must not end because one refresh fails
            log.exception("What is served could not be refreshed")
            self.problem = f"{type(error).__name__}: {error}"
            return False
        self.problem = ""
        if newer is None:
            return False
        if self.served is not None and self.served.queries is not newer.queries:
            self.save_queries()
        self.served, self.since = newer, time.time()
        log.info(
            "Serving %s on %s: %d images, index version %d.",
            newer.model.title,
            self._collection,
            len(newer.index),
            newer.index_version,
        )
        return True

    def save_queries(self, every: float = 0.0) -> None:
        """Write the profile of the queries, as `ServedQueries.save` does, where there is one."""
        if self.served is None or self.served.queries is None:
            return
        try:
            self.served.queries.save(every)
        except Exception:  # a newer model must be served all the same
            log.exception("The profile of the queries could not be kept")

    def _newer(self) -> Served | None:
        """Return what is to be served from now on, loaded and tried; None where that is served already."""
        key, now = self._models.current(), self.served
        same = now if now is not None and now.model.sha256 == key.sha256 else None
        state = self._store.state(self._collection, key.sha256)
        if now is not None and now.model == key and state is not None and now.index.state.build == state.build:
            return None
        index = Index.open(self._store, self._collection, key.sha256)
        retriever = same.searcher.retriever if same else self._models.load(key)
        searcher = Searcher(retriever, index)
        searcher.warm()
        return Served(key, searcher, same.queries if same else self._models.queries(key))
