"""Queries to look at: some that found the right item first and some that did not, each with its first results."""

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
"""Pixels of the longer side."""
DIMMEST = 0.25
"""Of a picture's brightness, what is left at places that brought nothing."""


class Shown(Protocol):
    """N images with M captions that can be looked at, as those of a prepared split."""

    image_of_caption: NDArray[np.int64]
    """(M,), each caption's image; every image has one."""

    @property
    def captions(self) -> Sequence[str]:
        """(M,)."""

    def pixels(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB of the image at the one index in `indices` (1,), uint8 (1, H, W, 3)."""


class Picture(NamedTuple):
    """An image of the split as a data URI, with its first caption in place of sight."""

    uri: str
    alt: str


class Result(NamedTuple):
    """A retrieved item: a caption's text, or a picture."""

    item: str | Picture
    right: bool


class Look(NamedTuple):
    """What the fusion looked at in a query and its first result."""

    words: list[tuple[str, float]]
    """The caption in pieces, each with its strength, from 0 to 1."""
    seen: Picture
    """The image, dark where it brought nothing."""


class Query(NamedTuple):
    """A query and what it found, best first."""

    item: str | Picture
    results: list[Result]
    rank: int
    """Of the best right item."""
    missing: str | Picture | None
    """A right item, where none is among the results."""
    look: Look | None


class Gallery(NamedTuple):
    """Queries of one direction."""

    found: list[Query]
    missed: list[Query]


def image_gallery(
    split: Shown,
    ranked: Callable[[int], list[int]],
    ranks: np.ndarray,
    queries: int,
    highlight: Highlight | None = None,
) -> Gallery:
    """Images and the captions they found.

    Args:
        split: the gallery, N images and M captions.
        ranked: captions of an image, best first.
        ranks: int64 (N,), rank of each image's best caption.
        queries: how many, half of them found and half missed as far as there are.
        highlight: what the fusion looked at, of the queries and their first results.
    """

    def query(image: int) -> Query:
        own = np.flatnonzero(split.image_of_caption == image)
        first = ranked(image)[:RESULTS]
        results = [Result(split.captions[j], j in own) for j in first]
        look = _look(split, highlight, image, first[0])
        return _query(picture(split, image), results, ranks[image], split.captions[own[0]], look)

    return Gallery(*([query(image) for image in chosen] for chosen in choose_queries(ranks, queries)))


def caption_gallery(
    split: Shown,
    ranked: Callable[[int], list[int]],
    ranks: np.ndarray,
    queries: int,
    highlight: Highlight | None = None,
) -> Gallery:
    """Captions and the images they found: `ranked` images of a caption, `ranks` int64 (M,), the others as above."""

    def query(caption: int) -> Query:
        own = int(split.image_of_caption[caption])
        first = ranked(caption)[:RESULTS]
        results = [Result(picture(split, i), i == own) for i in first]
        look = _look(split, highlight, first[0], caption)
        return _query(split.captions[caption], results, ranks[caption], picture(split, own), look)

    return Gallery(*([query(caption) for caption in chosen] for chosen in choose_queries(ranks, queries)))


def choose_queries(ranks: np.ndarray, queries: int) -> tuple[list[int], list[int]]:
    """Of `ranks` (Q,) int64 about half of `queries` at rank 1, and the others beyond, evenly over the split."""
    found, missed = np.flatnonzero(ranks == 1), np.flatnonzero(ranks > 1)
    share = min(len(missed), max(queries // 2, queries - len(found)))
    return _evenly(found, min(len(found), queries - share)), _evenly(missed, share)


def picture(split: Shown, image: int) -> Picture:
    """The image at this index as a JPEG data URI of at most `THUMBNAIL` pixels a side."""
    return Picture(_jpeg(_thumbnail(split, image)), split.captions[int(np.argmax(split.image_of_caption == image))])


def _look(split: Shown, highlight: Highlight | None, image: int, caption: int) -> Look | None:
    if highlight is None:
        return None
    words, heat = highlight(image, caption)
    pixels = _thumbnail(split, image)
    # Smooth between the middles of the places, and never quite black.
    light = Image.fromarray(heat.astype(np.float32)).resize(pixels.size, Image.Resampling.BICUBIC)
    shade = DIMMEST + (1 - DIMMEST) * np.clip(np.asarray(light), 0, 1)
    seen = Image.fromarray(np.round(np.asarray(pixels) * shade[:, :, None]).astype(np.uint8))
    return Look(words, Picture(_jpeg(seen), "The same picture, bright where it brought the score."))


def _thumbnail(split: Shown, image: int) -> Image.Image:
    thumbnail = Image.fromarray(split.pixels(np.array([image]))[0])
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return thumbnail


def _jpeg(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _query(item: str | Picture, results: list[Result], rank: int, right: str | Picture, look: Look | None) -> Query:
    return Query(item, results, int(rank), None if any(result.right for result in results) else right, look)


def _evenly(values: np.ndarray, count: int) -> list[int]:
    """`count` of `values`, from the first on at equal distances."""
    places = np.arange(count) * len(values) // max(count, 1)
    return [int(value) for value in values[places]]
