"""Pictures: images as the index keeps them, as a model reads them, and as JPEG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from diptych.data.images import open_image, to_pixels
from diptych.retriever import MAX_PIXELS

if TYPE_CHECKING:
    from diptych.model.package import Preprocessing

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""


class Picture(NamedTuple):
    """Facts of an image's pixels that the index needs."""

    width: int
    height: int
    thumbnail: bytes
    """JPEG."""
    pixels: Image.Image
    """In the size that the model reads."""


def read_picture(content: bytes, preprocessing: Preprocessing) -> Picture:
    """Return the picture in an image file.

    Raises:
        ImageError: as `open_image`.
    """
    image = open_image(content, MAX_PIXELS)
    return Picture(image.width, image.height, to_jpeg(image, THUMBNAIL, 80), model_pixels(image, preprocessing))


def model_pixels(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return an image in the size that a model reads; encoding that gives what encoding the image gives."""
    return Image.fromarray(to_pixels(image, preprocessing.image_size, preprocessing.resize))


def to_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """Return an image as JPEG whose longest side has at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=quality)
    return content.getvalue()
