"""What a generated scene is: a background and one to four objects in places; drawn from a seed, a split and an index.

A scene is a pure function of these three, so picture 17 of a split stays what it is however many follow it, and
further pictures of the same kind can be made at any time by going on with the index.
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
# Of sixteen classes that scene graphs fall into by their hash, these belong to the split: no graph is in two splits.
_CLASSES: dict[Split, range] = {"train": range(12), "val": range(12, 14), "test": range(14, 16)}
_COUNT_SHARES = (5, 40, 75, 100)
"""Percent of scenes with at most one, two, three, four objects."""
_INSIDE_PERCENT = 25
_CONTAINERS = ("circle", "square", "ring")
_HALF: dict[Size, int] = {"small": 85, "medium": 125, "large": 180}
_CONTAINER_HALF = 205
_MARGIN = 15
_GAP = 25


@dataclass(frozen=True)
class Thing:
    """An object of a scene. Lengths are in thousandths of the picture's side: centre `x`, `y`, half its width `half`.

    `container` is the index of the object that it lies inside of.
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
        """Column and row of its centre in a grid of three by three."""
        return self.x * 3 // 1000, self.y * 3 // 1000


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn; `entropy` seeds what is neither seen as an attribute nor said (grain, wording)."""

    pattern: str
    background: str
    things: tuple[Thing, ...]
    entropy: tuple[int, ...]

    def relations(self) -> list[tuple[int, Relation, int]]:
        """For every pair of objects how the first lies to the second, by the axis on which they are further apart."""
        return [(first, self._relation(first, second), second) for first, second in combinations(range(self.count), 2)]

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.things)

    def generator(self, purpose: int) -> np.random.Generator:
        """A random generator of the scene's own, one for each purpose."""
        return np.random.Generator(np.random.PCG64([*self.entropy, purpose]))

    def identity(self) -> tuple[Any, ...]:
        """All that captions can say of it: scenes with equal identities could not be told apart by words."""
        facts = [
            (thing.shape, thing.colour, thing.size, *thing.cell, thing.container is not None) for thing in self.things
        ]
        return (self.pattern, self.background, *sorted(facts))

    def to_json(self) -> dict[str, Any]:
        """The graph as the image record carries it."""
        return {
            "background": {"pattern": self.pattern, "colour": self.background},
            "objects": [
                {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "x": thing.x, "y": thing.y}
                for thing in self.things
            ],
            "relations": [list(relation) for relation in self.relations()],
        }

    def _relation(self, first: int, second: int) -> Relation:
        one, other = self.things[first], self.things[second]
        if one.container == second:
            return "inside"
        right, down = other.x - one.x, other.y - one.y
        if abs(right) >= abs(down):
            return "left of" if right > 0 else "right of"
        return "above" if down > 0 else "below"


def make_scene(seed: int, split: Split, index: int) -> Scene:
    """The scene number `index` of `split`; the same on every machine, and in no other split under any index."""
    entropy = (seed, _SPLITS.index(split), index)
    generator = np.random.Generator(np.random.PCG64(entropy))
    while True:
        scene = _draw_scene(generator, entropy)
        if scene is not None and zlib.crc32(repr(scene.identity()).encode()) % 16 in _CLASSES[split]:
            return scene


def _draw_scene(generator: np.random.Generator, entropy: tuple[int, ...]) -> Scene | None:
    """One attempt; None when the objects do not fit beside each other or could be mistaken for one another."""

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
        x, y = (_place(generator, along, half) for along in (column, row))
        things.append(Thing(pick(_CONTAINERS if container else SHAPES), pick(COLOURS), size, x, y, half))
    if any(_overlap(one, other) for one, other in combinations(things, 2)):
        return None
    if nested:
        # The inner object comes first, so that relations read "a star inside a ring"; the container moves to 1.
        outer = things[0]
        colour = pick(tuple(colour for colour in COLOURS if colour != outer.colour))
        things.insert(0, Thing(pick(SHAPES), colour, "small", outer.x, outer.y, _HALF["small"], container=1))
    if _twins(things):
        return None
    return Scene(pick(PATTERNS), pick(BACKGROUND_COLOURS), tuple(things), entropy)


def _place(generator: np.random.Generator, along: int, half: int) -> int:
    """A coordinate near the middle of the grid's column or row `along`, such that the object stays in the picture."""
    near = 167 + 333 * along + int(generator.integers(-60, 61))
    return min(max(near, half + _MARGIN), 1000 - half - _MARGIN)


def _overlap(one: Thing, other: Thing) -> bool:
    apart = one.half + other.half + _GAP
    return abs(one.x - other.x) < apart and abs(one.y - other.y) < apart


def _twins(things: list[Thing]) -> bool:
    """Two objects of the same colour and shape: a caption could not say which one it means."""
    return len({(thing.shape, thing.colour) for thing in things}) < len(things)
