"""Drawing of scenes as JPEG files.

All arithmetic is with integers, from the seed to the pixels, so the bytes are the same on every machine.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diptych.data.scenes.graph import Scene, Thing

_OBJECT_RGB = {
    "red": (210, 35, 35),
    "orange": (245, 130, 20),
    "yellow": (245, 225, 40),
    "green": (30, 140, 50),
    "blue": (35, 70, 205),
    "purple": (130, 40, 160),
    "brown": (110, 65, 30),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
_BACKGROUND_RGB = {
    "grey": (150, 150, 150),
    "beige": (208, 188, 150),
    "light blue": (140, 185, 220),
    "light green": (155, 205, 155),
    "pink": (228, 165, 185),
    "lilac": (178, 160, 215),
}
_DARKER = 34
"""Difference in brightness, of 255, between the two colours of a pattern."""
_OVERSAMPLING = 3
_POLYGONS = {
    "square": ((-886, -886), (886, -886), (886, 886), (-886, 886)),
    "triangle": ((0, -1000), (1000, 866), (-1000, 866)),
    "diamond": ((0, -1000), (800, 0), (0, 1000), (-800, 0)),
    "star": (
        (0, -1000), (235, -324), (951, -309), (380, 124), (588, 809),
        (0, 400), (-588, 809), (-380, 124), (-951, -309), (-235, -324),
    ),
    "cross": (
        (-320, -1000), (320, -1000), (320, -320), (1000, -320), (1000, 320), (320, 320),
        (320, 1000), (-320, 1000), (-320, 320), (-1000, 320), (-1000, -320), (-320, -320),
    ),
    "heart": ((-930, -120), (0, -500), (930, -120), (0, 950)),
}  # fmt: skip
"""Corners relative to the centre, in thousandths of half the width."""
_CIRCLES = {
    "circle": ((0, 0, 1000, True),),
    "ring": ((0, 0, 1000, True), (0, 0, 620, False)),
    "heart": ((-490, -380, 510, True), (490, -380, 510, True)),
}
"""Circles as centre and radius, in the same unit; they are filled (True) or cut out (False)."""
_TEXTURE = 1
"""Purpose of the random generator that draws shades and patterns."""


def draw(scene: Scene, size: int) -> bytes:
    """Return the scene as a JPEG of `size` × `size` pixels."""
    generator = scene.generator(_TEXTURE)
    picture = Image.fromarray(_background(scene, size, generator))
    # A container comes after the object inside it, and has to be painted first.
    for thing in reversed(scene.things):
        shade = int(generator.integers(-15, 16))
        colour = tuple(min(max(channel + shade, 0), 255) for channel in _OBJECT_RGB[thing.colour])
        mask, corner = _mask(thing, size)
        picture.paste(colour, corner, mask)
    file = BytesIO()
    # JPEG, because libjpeg gives the same bytes on every CPU; PNG's zlib-ng does not.
    picture.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def _background(scene: Scene, size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return the background (size, size, 3) uint8."""
    darkness = _DARKER * _pattern(scene.pattern, size, generator) // 100
    shade = int(generator.integers(-8, 9))
    base = np.array(_BACKGROUND_RGB[scene.background]) + shade
    return np.clip(base - darkness[:, :, None], 0, 255).astype(np.uint8)


def _pattern(name: str, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the darkness of each pixel (size, size) int64, in percent of the step between the two colours."""
    rows, columns = np.indices((size, size))
    period = size * int(generator.integers(13, 19)) // 100
    phase_x, phase_y = (int(value) for value in generator.integers(0, period, size=2))
    across, down = (columns + phase_x) % period, (rows + phase_y) % period
    match name:
        case "vertical stripes":
            return 100 * (across < period // 2)
        case "horizontal stripes":
            return 100 * (down < period // 2)
        case "checks":
            return 100 * ((across < period // 2) ^ (down < period // 2))
        case "dots":
            return 100 * ((2 * across - period) ** 2 + (2 * down - period) ** 2 < period**2 * 3 // 10)
        case "vertical gradient":
            return 250 * rows // size - 60
        case "horizontal gradient":
            return 250 * columns // size - 60
        case "noise":
            return generator.integers(-90, 140, size=(size, size))
        case _:
            return np.zeros((size, size), dtype=np.int64)


def _mask(thing: Thing, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return a mask of the pixels that the object covers (mode L), and the position of its upper left corner."""
    fine = size * _OVERSAMPLING
    left, top = ((centre - thing.half) * size // 1000 for centre in (thing.x, thing.y))
    side = 2 * thing.half * size // 1000 + 2
    canvas = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    x, y = thing.x * fine // 1000 - left * _OVERSAMPLING, thing.y * fine // 1000 - top * _OVERSAMPLING
    half = thing.half * fine // 1000
    if thing.shape in _POLYGONS:
        pen.polygon([(x + half * dx // 1000, y + half * dy // 1000) for dx, dy in _POLYGONS[thing.shape]], fill=255)
    for dx, dy, radius, filled in _CIRCLES.get(thing.shape, ()):
        cx, cy, reach = x + half * dx // 1000, y + half * dy // 1000, half * radius // 1000
        pen.ellipse((cx - reach, cy - reach, cx + reach, cy + reach), fill=255 if filled else 0)
    return canvas.reduce(_OVERSAMPLING), (left, top)
