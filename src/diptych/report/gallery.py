"""Example queries: some that retrieve a relevant item first and some that do not, each with its first results."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.report.highlights import Highlight

RESULTS = 5
THUMBNAIL = 128
"""Pixels of the longer side of a picture."""
DIMMEST = 0.25
"""Share of its brightness that a picture keeps where it contributes nothing to the score."""


class CaptionedImages(Protocol):
    """N images with M captions, with the pixels to show them: a prepared split, for example."""

    image_of_caption: NDArray[np.int64]
    """(M,), each caption's image; every image has one."""

    @property
    def captions(self) -> Sequence[str]:
        """Texts of the captions (M)."""

    def pixels(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return RGB of the image at the one index in `indices` (1,), uint8 (1, H, W, 3)."""


class Picture(NamedTuple):
    """An image of the split as a data URI, with its first caption as the text alternative."""

    uri: str
    alt: str


class Result(NamedTuple):
    """A retrieved item: a caption's text, or a picture."""

    item: str | Picture
    relevant: bool


class Contributions(NamedTuple):
    """Contributions of the parts of a query and its first result to the fusion's score."""

    words: list[tuple[str, float]]
    """Pieces of the caption, each with its contribution, from 0 to 1."""
    image: Picture
    """The image, dark where it contributes nothing."""


class Query(NamedTuple):
    """A query and its results, the best first."""

    item: str | Picture
    results: list[Result]
    rank: int
    """Rank of the best relevant item."""
    missing: str | Picture | None
    """A relevant item, if none is among the results."""
    contributions: Contributions | None


class Gallery(NamedTuple):
    """Example queries of one direction."""

    hits: list[Query]
    """Queries that retrieve a relevant item first."""
    misses: list[Query]


def make_gallery(
    split: CaptionedImages,
    direction: str,
    ranked: Callable[[int], list[int]],
    ranks: NDArray[np.int64],
    queries: int,
    highlight: Highlight | None = None,
) -> Gallery:
    """Return example queries of one direction with what they retrieve.

    Args:
        split: the gallery, N images and M captions.
        direction: "i2t" for images that retrieve captions, "t2i" for captions that retrieve images.
        ranked: the results of a query, the best first.
        ranks: int64 (N,) or (M,), rank of each query's best relevant item.
        queries: the number of queries, as far as possible half hits and half misses.
        highlight: the contributions to the fusion's score of a query and its first result.
    """
    by_image = direction == "i2t"

    def show(index: int, *, as_image: bool) -> str | Picture:
        return picture(split, index) if as_image else split.captions[index]

    def query(index: int) -> Query:
        relevant = np.flatnonzero(split.image_of_caption == index) if by_image else split.image_of_caption[[index]]
        first = ranked(index)[:RESULTS]
        results = [Result(show(item, as_image=not by_image), item in relevant) for item in first]
        missing = None if any(result.relevant for result in results) else show(int(relevant[0]), as_image=not by_image)
        image, caption = (index, first[0]) if by_image else (first[0], index)
        contributions = _contributions(split, highlight, image, caption)
        return Query(show(index, as_image=by_image), results, int(ranks[index]), missing, contributions)

    return Gallery(*([query(index) for index in chosen] for chosen in choose_queries(ranks, queries)))


def choose_queries(ranks: NDArray[np.int64], queries: int) -> tuple[list[int], list[int]]:
    """Choose about half of the `queries` at rank 1 of `ranks` (Q,), and the others beyond, evenly over the split."""
    hits, misses = np.flatnonzero(ranks == 1), np.flatnonzero(ranks > 1)
    missed = min(len(misses), max(queries // 2, queries - len(hits)))
    return _evenly(hits, min(len(hits), queries - missed)), _evenly(misses, missed)


def picture(split: CaptionedImages, image: int) -> Picture:
    """Return the image at this index as a JPEG data URI of at most `THUMBNAIL` pixels a side."""
    return Picture(_jpeg(_thumbnail(split, image)), split.captions[int(np.argmax(split.image_of_caption == image))])


def _contributions(
    split: CaptionedImages, highlight: Highlight | None, image: int, caption: int
) -> Contributions | None:
    if highlight is None:
        return None
    words, heat = highlight(image, caption)
    pixels = _thumbnail(split, image)
    # The brightness is smooth between the centres of the grid positions, and never black.
    light = Image.fromarray(heat.astype(np.float32)).resize(pixels.size, Image.Resampling.BICUBIC)
    shade = DIMMEST + (1 - DIMMEST) * np.clip(np.asarray(light), 0, 1)
    shaded = Image.fromarray(np.round(np.asarray(pixels) * shade[:, :, None]).astype(np.uint8))
    return Contributions(words, Picture(_jpeg(shaded), "The same image, bright where it contributes to the score."))


def _thumbnail(split: CaptionedImages, image: int) -> Image.Image:
    thumbnail = Image.fromarray(split.pixels(np.array([image]))[0])
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return thumbnail


def _jpeg(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _evenly(values: NDArray[np.int64], count: int) -> list[int]:
    """Return `count` of `values`, from the first on at equal distances."""
    positions = np.arange(count) * len(values) // max(count, 1)
    return [int(value) for value in values[positions]]
