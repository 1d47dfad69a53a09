"""What a model of the scenes must know: it scores an image above one that differs in a single fact.

It runs on the model of this project's last run of the preset `first` or `scenes`, since training one takes minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from diptych import Retriever
from diptych.config import load_params
from diptych.data.scenes.graph import Scene, Size, Thing
from diptych.data.scenes.pictures import draw

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "artifacts" / "model"
OBJECTS = [
    ("circle", "red"),
    ("square", "blue"),
    ("star", "yellow"),
    ("triangle", "green"),
    ("heart", "purple"),
    ("ring", "black"),
]
HALF: dict[Size, int] = {"small": 85, "medium": 125, "large": 180}


class Case(NamedTuple):
    """A caption, an image that it describes and one that it does not."""

    caption: str
    right: bytes
    wrong: bytes


Object = tuple[str, str]
Cases = Callable[[Object, Object], Case]


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    """Return the retriever of the last run, if that was one of a preset for the scenes."""
    presets = [load_params(ROOT / "presets" / f"{name}.yaml") for name in ("first", "scenes")]
    if not (MODEL / "model.safetensors").is_file() or load_params(ROOT / "params.yaml") not in presets:
        pytest.skip("this project has no model of the scenes: `make run` trains one")
    return Retriever.load(MODEL, "cpu")


def thing(item: Object, x: int = 500, y: int = 500, size: Size = "medium") -> Thing:
    return Thing(item[0], item[1], size, x, y, HALF[size])


def image(*things: Thing, pattern: str = "plain", background: str = "grey") -> bytes:
    return draw(Scene(pattern, background, things, (0, 2, 0)), 96)


def colour(first: Object, second: Object) -> Case:
    other = image(thing((first[0], second[1])))
    return Case(f"A medium {first[1]} {first[0]} in the middle.", image(thing(first)), other)


def one_more(first: Object, second: Object) -> Case:
    both = image(thing(first, x=200), thing(second, x=800))
    caption = f"A {first[1]} {first[0]} on a plain grey background."
    return Case(caption, image(thing(first, x=200)), both)


def one_less(first: Object, second: Object) -> Case:
    both = image(thing(first, x=200), thing(second, x=800))
    caption = f"A {first[1]} {first[0]} and a {second[1]} {second[0]} on a plain grey background."
    return Case(caption, both, image(thing(first, x=200)))


def side(first: Object, second: Object) -> Case:
    return Case(f"A {first[1]} {first[0]} on the left.", image(thing(first, x=200)), image(thing(first, x=800)))


def size(first: Object, second: Object) -> Case:
    small = image(thing(first, size="small"))
    return Case(f"A large {first[1]} {first[0]}.", image(thing(first, size="large")), small)


def pattern(first: Object, second: Object) -> Case:
    caption = f"A {first[1]} {first[0]} on a checked grey background."
    return Case(caption, image(thing(first), pattern="checks"), image(thing(first)))


def relation(first: Object, second: Object) -> Case:
    caption = f"A {first[1]} {first[0]} left of a {second[1]} {second[0]}."
    mirrored = image(thing(second, x=200), thing(first, x=800))
    return Case(caption, image(thing(first, x=200), thing(second, x=800)), mirrored)


def cases(kind: Cases) -> Iterator[Case]:
    return itertools.starmap(kind, itertools.permutations(OBJECTS, 2))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(colour, id="the colour of an object"),
        pytest.param(one_more, id="an object that the caption does not have"),
        pytest.param(one_less, id="an object that only the caption has"),
        pytest.param(side, id="left and right in the picture"),
        pytest.param(size, id="the size of an object"),
        pytest.param(pattern, id="the pattern of the background"),
        pytest.param(
            relation,
            id="left of and right of",
            marks=pytest.mark.xfail(strict=True, reason="few epochs teach no relations: 50 % are right, as by chance"),
        ),
    ],
)
def test_it_tells_apart(retriever: Retriever, kind: Cases) -> None:
    captions, right, wrong = zip(*cases(kind), strict=True)

    better = retriever.score(right, captions) > retriever.score(wrong, captions)

    assert better.mean() >= 0.9
