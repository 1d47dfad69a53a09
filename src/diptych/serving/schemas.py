"""Requests and responses of the API."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from diptych.retrieval.calibration import GOOD
from diptych.serving.filters import Operator
from diptych.serving.requests import LONGEST_TEXT

MOST_RESULTS = 1_000
"""Largest number of results of a request."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Condition(_Strict):
    """Comparison of an attribute with a value."""

    attribute: str
    operator: Operator = "="
    value: bool | int | float | str


class SearchRequest(_Strict):
    """A search: by `text`, or by `like`, the hash of an image of the collection."""

    text: Annotated[str | None, Field(max_length=LONGEST_TEXT)] = None
    like: str | None = None
    k: Annotated[int, Field(ge=1, le=MOST_RESULTS)] = 10
    offset: Annotated[int, Field(ge=0, le=10**6)] = 0
    filters: Annotated[list[Condition], Field(max_length=20)] = []
    rerank: bool = True
    min_probability: Annotated[float, Field(ge=0, le=1)] = GOOD
    """Probability of a right first result from which on it is a good match."""


class Result(BaseModel):
    """An image that was found."""

    rank: int
    score: float
    hash: str
    path: str
    captions: list[str]
    attributes: dict[str, bool | int | float | str | None]
    width: int
    height: int


class SearchResponse(BaseModel):
    """The results of a search, and what found them."""

    model: str
    model_sha256: str
    index_version: int
    collection: str
    total: int
    """Number of images that pass the filters."""
    reranked: int
    """Number of first images that the fusion has re-ranked."""
    probability: float | None
    """Probability that the very first image is right for a text; null for images, and without a calibration."""
    good_match: bool | None
    """True if that is at least `min_probability`."""
    milliseconds: dict[str, float]
    results: list[Result]
