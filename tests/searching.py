"""A small collection and a tiny model to index and to search it with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from diptych import Retriever
from diptych.drift.profile import Embedded, Profile, split_words, vocabulary
from diptych.errors import DiptychError
from diptych.serving.app import make_app
from diptych.serving.following import Following, ModelKey
from diptych.serving.index import Index
from diptych.serving.indexing import IndexSummary, announce, update_index
from diptych.serving.queries import ServedQueries
from diptych.serving.sources import FilesSource, Source
from diptych.serving.store import Store

MODEL = "ab" * 32
"""SHA-256 that stands for the tiny model."""
OTHER = "cd" * 32


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a PNG of coloured noise."""
    random = np.random.default_rng(seed)
    pixels = random.integers(256, size=(3, 4, 3)).astype(np.uint8)
    content = BytesIO()
    Image.fromarray(pixels).resize(size).save(content, "PNG")
    return content.getvalue()


def write_photos(folder: Path, names: list[str], first: int = 0) -> Path:
    """Write a photo of its own for each name."""
    for seed, name in enumerate(names, start=first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(seed))
    return folder


@dataclass
class Collection:
    """A folder of photos, its store and a model."""

    photos: Path
    store: Store
    retriever: Retriever
    name: str = "photos"
    loaded: int = 0
    """Number of times that the model was loaded."""

    def load(self) -> Retriever:
        self.loaded += 1
        return self.retriever

    @property
    def source(self) -> Source:
        return FilesSource(str(self.photos))

    def update(
        self, source: Source | None = None, *, model: str = MODEL, announced: bool = True, **options: Any
    ) -> IndexSummary:
        """Index it; options are those of `update_index`."""
        summary = update_index(self.store, self.name, source or self.source, model, self.load, **options)
        if announced:
            announce(self.store, self.name, summary)
        return summary

    def open(self, model: str = MODEL) -> Index:
        return Index.open(self.store, self.name, model)

    def paths(self) -> list[str]:
        index = self.open()
        return [record.path for record in index.records(np.arange(len(index)))]


def profile_of(captions: list[str], retriever: Retriever, embedded: list[str] | None = None) -> Profile:
    """Return the profile of as many images as captions; by default these captions are embedded too."""
    counts, total, unknown = vocabulary(list(range(len(captions))), [split_words(text) for text in captions])
    text = retriever.encode_texts(captions if embedded is None else embedded).embedding
    pairs = np.concatenate([np.zeros_like(text), text], axis=1).astype(np.float16)
    contents = np.zeros(0, np.uint32)
    return Profile(len(captions), len(captions), {}, counts, total, unknown, contents, Embedded(MODEL, pairs))


class FakeModels:
    """A registry with a model that tests put into use."""

    def __init__(self, retriever: Retriever) -> None:
        self.key = ModelKey("tiny version 1", MODEL, "1")
        self.problem: DiptychError | None = None
        self.reference: Profile | None = None
        """Profile of the captions that the model learned from."""
        self.kept: Path | None = None
        """Folder in which profiles of queries are kept."""
        self._retriever = retriever

    def current(self) -> ModelKey:
        if self.problem:
            raise self.problem
        return self.key

    def load(self, key: ModelKey) -> Retriever:
        return self._retriever

    def queries(self, key: ModelKey) -> ServedQueries | None:
        return ServedQueries(key.sha256, self.reference, 0.2, self.kept) if self.reference else None


def serve(
    collection: Collection, reference: Profile | None = None, kept: Path | None = None, **options: Any
) -> Iterator[tuple[TestClient, Following, FakeModels]]:
    """Give a client of the application, in this process."""
    models = FakeModels(collection.retriever)
    models.reference, models.kept = reference, kept
    following = Following(models, collection.store, collection.name)
    following.refresh()
    with TestClient(make_app(following, refresh_every=None, **options)) as client:
        yield client, following, models
