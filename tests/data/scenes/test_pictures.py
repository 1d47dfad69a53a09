"""Drawn scenes: each attribute is seen, and the bytes are always the same."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.data.images import open_image
from diptych.data.scenes.graph import COLOURS, PATTERNS, SHAPES, Scene, Thing, make_scene
from diptych.data.scenes.pictures import draw


def pixels(scene: Scene, size: int = 96) -> NDArray[np.int64]:
    return np.asarray(open_image(draw(scene, size), 10**8)).astype(np.int64)


def with_object(shape: str = "circle", colour: str = "red", pattern: str = "plain", half: int = 180) -> Scene:
    return Scene(pattern, "grey", (Thing(shape, colour, "large", 300, 600, half),), (1, 2, 3))


def test_pictures_are_the_same_to_the_byte() -> None:
    digest = hashlib.sha256()
    for index in range(20):
        digest.update(draw(make_scene(0, "train", index), 96))

    assert digest.hexdigest() == "624df6f586e1d14a4786c0d4a29749ed3ede6488104064014420870d47b84b20"


def test_the_picture_has_the_requested_size() -> None:
    assert pixels(with_object(), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_has_its_colour_at_its_position(colour: str) -> None:
    picture = pixels(with_object(colour=colour))
    other = pixels(with_object(colour="white" if colour != "white" else "black"))

    changed = np.argwhere(np.abs(picture - other).sum(axis=2) > 40)
    assert changed.mean(axis=0) == pytest.approx([0.6 * 96, 0.3 * 96], abs=1.5)


def test_no_two_shapes_look_alike() -> None:
    drawn = [pixels(with_object(shape=shape)) for shape in SHAPES]
    differences = [np.abs(first - second).mean() for first, second in combinations(drawn, 2)]
    assert min(differences) > 0.5


def test_no_two_backgrounds_look_alike() -> None:
    drawn = [pixels(with_object(pattern=pattern)) for pattern in PATTERNS]
    differences = [np.abs(first - second).mean() for first, second in combinations(drawn, 2)]
    assert min(differences) > 2


def test_what_lies_inside_is_painted_over_its_container() -> None:
    inner = Thing("circle", "white", "small", 500, 500, 85, container=1)
    outer = Thing("square", "black", "large", 500, 500, 205)

    picture = pixels(Scene("plain", "grey", (inner, outer), (0, 0, 0)))

    assert picture[48, 48].min() > 200
    assert picture[48, 48 - 13].max() < 60
