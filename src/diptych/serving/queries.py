"""Queries of the model that is served: their profile in memory, their drift, and the file that keeps the profile.

The file has hashes, numbers of words and embeddings, and no text; short texts can be guessed from it by trial.
`diptych serve` writes it with --feedback alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from diptych.drift.profile import Profile
from diptych.drift.queries import QueryDrift, QueryProfile, SampledText, caption_dimensions, compare_queries
from diptych.files import write_json

_PATIENCE = 10.0
"""Seconds to wait for another server that writes."""
_MEASURE_EVERY = 5.0
"""Seconds between two measurements of the drift: each takes a core that searches need."""

log = logging.getLogger(__name__)


class _Measured(NamedTuple):
    """The drift of a sample, and the time of its measurement."""

    sample: Mapping[str, SampledText]
    drift: QueryDrift
    time: float


class ServedQueries:
    """The queries that one model has answered, which threads may add to at once.

    Args:
        model_sha256: SHA-256 of the model's files.
        reference: profile of the data that the model learned from.
        limit: the largest distance that is no drift.
        folder: folder of the file that keeps the profile from one server to the next; None to keep none.
    """

    def __init__(self, model_sha256: str, reference: Profile, limit: float, folder: Path | None = None) -> None:
        self._reference, self._limit, self._folder = reference, limit, folder
        self._profile = QueryProfile(model_sha256)
        if folder is not None:
            self._profile = read_queries(folder, model_sha256, caption_dimensions(reference))
        self._unsaved, self._last_save = 0, time.monotonic()
        self._measured: _Measured | None = None
        self._lock, self._measuring = Lock(), Lock()

    def add(self, text: str, embedding: NDArray[np.float32]) -> None:
        """Count a search by a text with this embedding (d,)."""
        with self._lock:
            if self._profile.dimensions not in (None, len(embedding)):
                log.warning("The kept queries do not count: their embeddings do not have %d dimensions", len(embedding))
                self._profile = QueryProfile(self._profile.model_sha256)
            self._profile = self._profile.with_text(text, embedding, self._reference.words)
            self._unsaved += 1

    def drift(self) -> QueryDrift:
        """Return the distances of the queries from the captions that the model learned from.

        It takes up to half a second where the sample has changed, at most once in `_MEASURE_EVERY` seconds. Otherwise
        the last distances are returned. Of several threads one measures, and the others wait for it.
        """
        with self._measuring:
            profile, last = self._profile, self._measured
            if last is None or (last.sample is not profile.sample and time.monotonic() - last.time >= _MEASURE_EVERY):
                drift = compare_queries(self._reference, profile, self._limit)
                last = self._measured = _Measured(profile.sample, drift, time.monotonic())
        return replace(last.drift, texts=profile.texts)

    def save(self, every: float = 0.0) -> None:
        """Write the profile, if it has changed and was not written in the last `every` seconds; warn where that fails.

        What another server has written meanwhile is added to it.
        """
        if self._folder is None or not self._unsaved or time.monotonic() - self._last_save < every:
            return
        self._last_save = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock", timeout=_PATIENCE):
                self._write(self._folder)
        except OSError as error:
            log.warning("The queries cannot be kept in %s: %s", self._folder, error)

    def _write(self, folder: Path) -> None:
        stored = read_queries(folder, self._profile.model_sha256, self._profile.dimensions)
        with self._lock:
            profile, written = self._profile, self._unsaved
            # A file that was removed would make the number smaller.
            profile = profile.united(stored, max(profile.texts, stored.texts + written))
            self._profile = profile
        write_json(queries_path(folder, profile.model_sha256), profile.to_json())
        with self._lock:
            self._unsaved -= written


def queries_path(folder: Path, model_sha256: str) -> Path:
    """Return the file in `folder` that keeps the profile of a model's queries; each model has one."""
    return folder / f"{model_sha256[:16]}.json"


def read_queries(folder: Path, model_sha256: str, dimensions: int | None = None) -> QueryProfile:
    """Return the kept profile of a model's queries.

    It is empty where there is none, and where the file cannot be read: a warning then names it.

    Args:
        folder: folder of the profiles.
        model_sha256: SHA-256 of the model's files.
        dimensions: number of dimensions of the model's embeddings; None where it is not known.
    """
    path = queries_path(folder, model_sha256)
    try:
        profile = QueryProfile.from_json(json.loads(path.read_text(encoding="utf-8")))
        if profile.model_sha256 != model_sha256:
            raise ValueError(f"it is of the model {profile.model_sha256[:16]}")
        if dimensions is not None and profile.dimensions not in (None, dimensions):
            raise ValueError(f"its embeddings have {profile.dimensions} dimensions, those of the model {dimensions}")
    except FileNotFoundError:
        return QueryProfile(model_sha256)
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read, so the queries that it keeps do not count: %s", path, error)
        return QueryProfile(model_sha256)
    return profile
