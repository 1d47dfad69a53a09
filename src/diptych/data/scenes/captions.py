"""Five captions of a scene, from all that can be said to a few words; a small grammar with synonyms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.data.scenes.graph import INVERSE, Relation, Scene, Thing

_SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
}
_SIZE_WORDS = {"small": ("small", "tiny", "little"), "medium": ("",), "large": ("large", "big", "huge")}
_COLOUR_WORDS = {"purple": ("purple", "violet")}
_RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "within"),
}
_PLACE_WORDS = {
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
_BACKGROUND_WORDS = {
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
_MOST_PLACES = 2
"""Places told in one caption: with more, that of four objects would be longer than most text towers read."""


def captions(scene: Scene) -> list[str]:
    """Five sentences, in this order: all objects with size and place and the background; all objects with size, one
    relation and the background; all objects and one relation; two objects with their places; one or two objects and
    the background."""
    speaker = _Speaker(scene)
    return [
        _sentence(words)
        for words in (
            speaker.everything_in_its_place(),
            speaker.everything_related(sizes=True) + speaker.on_background(),
            speaker.opening() + speaker.everything_related(sizes=False),
            speaker.two_in_their_places(),
            speaker.in_short(),
        )
    ]


class _Speaker:
    """Says things of one scene, choosing its words at random."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._generator: np.random.Generator = scene.generator(_WORDING)

    def everything_in_its_place(self) -> str:
        parts, places = [], 0
        for thing in self._shuffled():
            words = self._object(thing, sizes=True)
            if thing.container is not None:
                words += f" {self._relation('inside')} {self._object(self._scene.things[thing.container], sizes=True)}"
            if places < _MOST_PLACES:
                words += f" {self._place(thing)}"
                places += 1
            parts.append(words)
        return _enumerate(parts) + self.on_background()

    def everything_related(self, *, sizes: bool) -> str:
        things = self._scene.things
        if len(things) == 1:
            return f"{self._object(things[0], sizes=True)} {self._place(things[0])}"
        first, relation, second = self._choose_relation()
        if relation != "inside" and self._chance(50):
            first, relation, second = second, INVERSE[relation], first
        one, other = self._object(things[first], sizes), self._object(things[second], sizes)
        related = f"{one} {self._relation(relation)} {other}"
        others = [self._object(thing, sizes) for index, thing in enumerate(things) if index not in (first, second)]
        return related + (self._pick((", with ", " and ", ", and also ")) + _enumerate(others) if others else "")

    def two_in_their_places(self) -> str:
        chosen = self._shuffled()[:2]
        sizes = len(chosen) == 1 or self._chance(50)
        parts = [f"{self._object(thing, sizes)} {self._place(thing)}" for thing in chosen]
        if self._chance(50):
            return self.opening() + " and ".join(parts)
        return f"{' and '.join(parts)} of the {self._pick(_PICTURE_WORDS)}"

    def in_short(self) -> str:
        chosen = self._shuffled()[: 1 if self._chance(25) else 2]
        return " and ".join(self._object(thing, sizes=False) for thing in chosen) + self.on_background()

    def on_background(self) -> str:
        phrase = self._pick(_BACKGROUND_WORDS[self._scene.pattern]).format(self._scene.background)
        return f" {self._pick(('on', 'against'))} {phrase}"

    def opening(self) -> str:
        return self._pick(_OPENINGS)

    def _choose_relation(self) -> tuple[int, Relation, int]:
        """What lies inside is always told; of the others, one whose objects lie in the same row or column, if any."""
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
        """The objects in any order, without those that hold another, which are told with what they hold."""
        held = {thing.container for thing in self._scene.things}
        free = [thing for index, thing in enumerate(self._scene.things) if index not in held]
        return [free[int(index)] for index in self._generator.permutation(len(free))]

    def _object(self, thing: Thing, sizes: bool) -> str:
        size = self._pick(_SIZE_WORDS[thing.size]) if sizes else ""
        colour = self._pick(_COLOUR_WORDS.get(thing.colour, (thing.colour,)))
        words = f"{size} {colour} {self._pick(_SHAPE_WORDS[thing.shape])}".strip()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def _place(self, thing: Thing) -> str:
        return self._pick(_PLACE_WORDS[thing.cell])

    def _relation(self, relation: Relation) -> str:
        return self._pick(_RELATION_WORDS[relation])

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self._generator.integers(len(options)))]

    def _chance(self, percent: int) -> bool:
        return int(self._generator.integers(100)) < percent


def _enumerate(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
