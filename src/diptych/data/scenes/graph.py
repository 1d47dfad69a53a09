"""Generated scenes: a background and one to four objects at positions, drawn from a seed, a split and an index.

A scene is a pure function of these three. So picture 17 of a split is the same whatever number of pictures follow it,
and further pictures of the same kind can be made at any time with higher indices.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

Split = Literal["train", "val", "test"]
Size = Literal["small", "medium", "large"]
Relation = Literal["left of", "right of", "above", "below", "inside"]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
SIZES: tuple[Size, ...] = ("small", "medium", "large")
PATTERNS = (
    "plain",
    "vertical stripes",
    "horizontal stripes",
    "checks",
    "dots",
    "vertical gradient",
    "horizontal gradient",
    "noise",
)
BACKGROUND_COLOURS = ("grey", "beige", "light blue", "light green", "pink", "lilac")

INVERSE: dict[Relation, Relation] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_CLASSES: dict[Split, range] = {"train": range(12), "val": range(12, 14), "test": range(14, 16)}
"""Classes of scenes, by split. The hash of a scene's identity is its class, so no scene is in two splits."""
_CLASS_COUNT = 16
_COUNT_SHARES = (5, 40, 75, 100)
"""Percentages of drawn scenes with at most one, two, three, four objects."""
_INSIDE_PERCENT = 25
"""Percentage of drawn scenes of several objects in which one object contains another."""
_CONTAINERS = ("circle", "square", "ring")
_HALF: dict[Size, int] = {"small": 85, "medium": 125, "large": 180}
"""Half the width of an object, in thousandths of the picture's side, as are the three lengths below."""
_CONTAINER_HALF = 205
_MARGIN = 15
_GAP = 25


@dataclass(frozen=True)
class Thing:
    """An object of a scene.

    Attributes:
        x, y: position of the centre, in thousandths of the picture's side.
        half: half the width, likewise.
        container: index of the object that contains this one, if any.
    """

    shape: str
    colour: str
    size: Size
    x: int
    y: int
    half: int
    container: int | None = None

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row of the centre in a grid of three by three."""
        return self.x * 3 // 1000, self.y * 3 // 1000


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn.

    Attributes:
        background: colour of the background.
        things: the objects; one that lies inside another comes before its container.
        entropy: seed of all that is no attribute: the grain of the picture, the wording of the captions.
    """

    pattern: str
    background: str
    things: tuple[Thing, ...]
    entropy: tuple[int, ...]

    def relations(self) -> list[tuple[int, Relation, int]]:
        """Return the relation of each pair of objects, by the axis on which they are further apart."""
        return [(first, self._relation(first, second), second) for first, second in combinations(range(self.count), 2)]

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.things)

    def generator(self, purpose: int) -> np.random.Generator:
        """Return the scene's random generator for a purpose."""
        return np.random.Generator(np.random.PCG64([*self.entropy, purpose]))

    def identity(self) -> tuple[Any, ...]:
        """Return all that captions can say about the scene; words cannot distinguish scenes of equal identity."""
        facts = [
            (thing.shape, thing.colour, thing.size, *thing.cell, thing.container is not None) for thing in self.things
        ]
        return (self.pattern, self.background, *sorted(facts))

    def to_json(self) -> dict[str, Any]:
        """Return the scene graph as the image record stores it."""
        return {
            "background": {"pattern": self.pattern, "colour": self.background},
            "objects": [
                {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "x": thing.x, "y": thing.y}
                for thing in self.things
            ],
            "relations": [list(relation) for relation in self.relations()],
        }

    def _relation(self, first: int, second: int) -> Relation:
        subject, reference = self.things[first], self.things[second]
        if subject.container == second:
            return "inside"
        right, down = reference.x - subject.x, reference.y - subject.y
        if abs(right) >= abs(down):
            return "left of" if right > 0 else "right of"
        return "above" if down > 0 else "below"


def make_scene(seed: int, split: Split, index: int) -> Scene:
    """Return the scene number `index` of `split`: the same on every machine, and in no other split at any index."""
    entropy = (seed, _SPLITS.index(split), index)
    generator = np.random.Generator(np.random.PCG64(entropy))
    while True:
        scene = _draw_scene(generator, entropy)
        if scene is not None and zlib.crc32(repr(scene.identity()).encode()) % _CLASS_COUNT in _CLASSES[split]:
            return scene


def _draw_scene(generator: np.random.Generator, entropy: tuple[int, ...]) -> Scene | None:
    """Return a scene, or None if its objects overlap or cannot be distinguished by a caption."""

    def pick(options: tuple[Any, ...]) -> Any:
        return options[int(generator.integers(len(options)))]

    percent = int(generator.integers(100))
    count = 1 + sum(percent >= share for share in _COUNT_SHARES)
    nested = count > 1 and int(generator.integers(100)) < _INSIDE_PERCENT
    cells = generator.permutation(9)
    things: list[Thing] = []
    for position in range(count - nested):
        container = nested and position == 0
        size: Size = "large" if container else pick(SIZES)
        half = (_CONTAINER_HALF if container else _HALF[size]) + int(generator.integers(-5, 6))
        column, row = int(cells[position]) % 3, int(cells[position]) // 3
        x, y = (_coordinate(generator, cell, half) for cell in (column, row))
        things.append(Thing(pick(_CONTAINERS if container else SHAPES), pick(COLOURS), size, x, y, half))
    if any(_overlap(first, second) for first, second in combinations(things, 2)):
        return None
    if nested:
        # The inner object comes first, so that relations read "a star inside a ring"; the container moves to 1.
        outer = things[0]
        colour = pick(tuple(colour for colour in COLOURS if colour != outer.colour))
        things.insert(0, Thing(pick(SHAPES), colour, "small", outer.x, outer.y, _HALF["small"], container=1))
    if _has_twins(things):
        return None
    return Scene(pick(PATTERNS), pick(BACKGROUND_COLOURS), tuple(things), entropy)


def _coordinate(generator: np.random.Generator, cell: int, half: int) -> int:
    """Return a coordinate near the middle of a column or row of the grid that keeps the object in the picture."""
    near = 167 + 333 * cell + int(generator.integers(-60, 61))
    return min(max(near, half + _MARGIN), 1000 - half - _MARGIN)


def _overlap(first: Thing, second: Thing) -> bool:
    distance = first.half + second.half + _GAP
    return abs(first.x - second.x) < distance and abs(first.y - second.y) < distance


def _has_twins(things: list[Thing]) -> bool:
    """Return whether two objects have the same colour and shape, so that a caption could mean either."""
    return len({(thing.shape, thing.colour) for thing in things}) < len(things)
