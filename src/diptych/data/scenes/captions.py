"""Five captions of a scene, from a full description to a few words, by a small grammar with synonyms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.data.scenes.graph import INVERSE, Relation, Scene, Thing

# Words by what they mean; a caption has one of them, drawn at random.
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
}
SIZE_WORDS = {"small": ("small", "tiny", "little"), "medium": ("",), "large": ("large", "big", "huge")}
COLOUR_WORDS = {"purple": ("purple", "violet")}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "within"),
}
POSITION_WORDS = {
    (0, 0): ("in the top left corner", "at the top left"),
    (1, 0): ("at the top", "at the top centre"),
    (2, 0): ("in the top right corner", "at the top right"),
    (0, 1): ("on the left", "on the left side"),
    (1, 1): ("in the middle", "in the centre"),
    (2, 1): ("on the right", "on the right side"),
    (0, 2): ("in the bottom left corner", "at the bottom left"),
    (1, 2): ("at the bottom", "at the bottom centre"),
    (2, 2): ("in the bottom right corner", "at the bottom right"),
}
BACKGROUND_WORDS = {
    "plain": ("a plain {} background", "a solid {} background"),
    "vertical stripes": ("a {} background with vertical stripes", "a vertically striped {} background"),
    "horizontal stripes": ("a {} background with horizontal stripes", "a horizontally striped {} background"),
    "checks": ("a checked {} background", "a {} checkerboard"),
    "dots": ("a dotted {} background", "a {} background with dots"),
    "vertical gradient": ("a {} background that darkens downwards", "a {} background darker at the bottom"),
    "horizontal gradient": ("a {} background that darkens to the right", "a {} background darker on the right"),
    "noise": ("a grainy {} background", "a noisy {} background"),
}
_OPENINGS = ("", "", "there is ", "a picture of ", "an image of ", "a scene with ", "this picture shows ", "we see ")
_PICTURE_WORDS = ("picture", "image", "scene")
_WORDING = 2
"""Purpose of the random generator that chooses the words."""
_MAX_POSITIONS = 2
"""Most positions in one caption. With more, a caption of four objects would be longer than most text towers read."""


def captions(scene: Scene) -> list[str]:
    """Return five sentences about the scene.

    They describe, in this order:

    1. all objects with their sizes, up to two positions, and the background;
    2. all objects with their sizes, one relation, and the background;
    3. all objects and one relation;
    4. two objects, or the only one, with their positions;
    5. one or two objects, and the background.
    """
    writer = _Writer(scene)
    return [
        _sentence(words)
        for words in (
            writer.all_with_positions(),
            writer.all_with_a_relation(sizes=True) + writer.background(),
            writer.opening() + writer.all_with_a_relation(sizes=False),
            writer.two_with_positions(),
            writer.few_words(),
        )
    ]


class _Writer:
    """Writer of phrases about one scene, which chooses its words at random."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._generator: np.random.Generator = scene.generator(_WORDING)

    def all_with_positions(self) -> str:
        parts = []
        for number, thing in enumerate(self._shuffled()):
            words = self._object(thing, sizes=True)
            if thing.container is not None:
                words += f" {self._relation('inside')} {self._object(self._scene.things[thing.container], sizes=True)}"
            if number < _MAX_POSITIONS:
                words += f" {self._position(thing)}"
            parts.append(words)
        return _enumerate(parts) + self.background()

    def all_with_a_relation(self, *, sizes: bool) -> str:
        things = self._scene.things
        if len(things) == 1:
            return f"{self._object(things[0], sizes=True)} {self._position(things[0])}"
        first, relation, second = self._choose_relation()
        if relation != "inside" and self._chance(50):
            first, relation, second = second, INVERSE[relation], first
        subject, reference = self._object(things[first], sizes), self._object(things[second], sizes)
        related = f"{subject} {self._relation(relation)} {reference}"
        others = [self._object(thing, sizes) for index, thing in enumerate(things) if index not in (first, second)]
        return related + (self._pick((", with ", " and ", ", and also ")) + _enumerate(others) if others else "")

    def two_with_positions(self) -> str:
        chosen = self._shuffled()[:2]
        sizes = len(chosen) == 1 or self._chance(50)
        parts = [f"{self._object(thing, sizes)} {self._position(thing)}" for thing in chosen]
        if self._chance(50):
            return self.opening() + " and ".join(parts)
        return f"{' and '.join(parts)} of the {self._pick(_PICTURE_WORDS)}"

    def few_words(self) -> str:
        chosen = self._shuffled()[: 1 if self._chance(25) else 2]
        return " and ".join(self._object(thing, sizes=False) for thing in chosen) + self.background()

    def background(self) -> str:
        phrase = self._pick(BACKGROUND_WORDS[self._scene.pattern]).format(self._scene.background)
        return f" {self._pick(('on', 'against'))} {phrase}"

    def opening(self) -> str:
        return self._pick(_OPENINGS)

    def _choose_relation(self) -> tuple[int, Relation, int]:
        """Return the relation to describe: the one with a container if there is one, or one within a row or column."""
        relations, things = self._scene.relations(), self._scene.things
        inside = [relation for relation in relations if relation[1] == "inside"]
        aligned = [
            (first, relation, second)
            for first, relation, second in relations
            if (things[first].cell[0] == things[second].cell[0]) != (things[first].cell[1] == things[second].cell[1])
        ]
        candidates = inside or aligned or relations
        return candidates[int(self._generator.integers(len(candidates)))]

    def _shuffled(self) -> list[Thing]:
        """Return the objects in random order, without containers, which are described together with their content."""
        containers = {thing.container for thing in self._scene.things}
        others = [thing for index, thing in enumerate(self._scene.things) if index not in containers]
        return [others[int(index)] for index in self._generator.permutation(len(others))]

    def _object(self, thing: Thing, sizes: bool) -> str:
        size = self._pick(SIZE_WORDS[thing.size]) if sizes else ""
        colour = self._pick(COLOUR_WORDS.get(thing.colour, (thing.colour,)))
        words = f"{size} {colour} {self._pick(SHAPE_WORDS[thing.shape])}".strip()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def _position(self, thing: Thing) -> str:
        return self._pick(POSITION_WORDS[thing.cell])

    def _relation(self, relation: Relation) -> str:
        return self._pick(RELATION_WORDS[relation])

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self._generator.integers(len(options)))]

    def _chance(self, percent: int) -> bool:
        return int(self._generator.integers(100)) < percent


def _enumerate(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
