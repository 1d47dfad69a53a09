"""Captions of scenes: five sentences, all of them true."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from diptych.data.scenes.captions import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    POSITION_WORDS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    captions,
)
from diptych.data.scenes.graph import BACKGROUND_COLOURS, COLOURS, INVERSE, Scene, Thing, make_scene


def alternatives(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def meanings(table: Mapping[Any, tuple[str, ...]]) -> dict[str, str]:
    return {word: meaning for meaning, words in table.items() for word in words if word}


SHAPES = meanings(SHAPE_WORDS)
SIZES = meanings(SIZE_WORDS)
COLOUR_NAMES = {colour: colour for colour in COLOURS} | meanings(COLOUR_WORDS)
RELATIONS = meanings(RELATION_WORDS)
POSITIONS = {words: cell for cell, synonyms in POSITION_WORDS.items() for words in synonyms}
OBJECT = re.compile(
    rf"\ban? (?:({alternatives(SIZES)}) )?({alternatives(COLOUR_NAMES)}) ({alternatives(SHAPES)})", re.I
)


class Reading:
    """Content of a caption, as a reader sees it who does not know how it was written."""

    def __init__(self, caption: str) -> None:
        self.background = None
        for pattern, phrases in BACKGROUND_WORDS.items():
            for phrase in phrases:
                match = re.search(
                    re.escape(phrase).replace(r"\{\}", f"({'|'.join(BACKGROUND_COLOURS)})") + r"\.$", caption
                )
                if match:
                    self.background = (pattern, match[1])
                    caption = caption[: match.start()]
        matches = list(OBJECT.finditer(caption))
        ends = [match.start() for match in matches[1:]] + [len(caption)]
        after = [caption[match.end() : end].strip() for match, end in zip(matches, ends, strict=True)]
        self.objects = [
            (
                SHAPES[match[3]],
                COLOUR_NAMES[match[2].lower()],
                SIZES.get((match[1] or "").lower()),
                self._position(words),
            )
            for match, words in zip(matches, after, strict=True)
        ]
        self.relations = [
            (index, RELATIONS[words], index + 1) for index, words in enumerate(after) if words in RELATIONS
        ]

    @staticmethod
    def _position(words: str) -> tuple[int, int] | None:
        match = re.match(alternatives(POSITIONS), words)
        return POSITIONS[match[0]] if match else None

    def fits(self, scene: Scene) -> bool:
        """Return whether all of it is true of the scene."""
        indices = [self._find(scene, *description) for description in self.objects]
        if None in indices or self.background not in (None, (scene.pattern, scene.background)):
            return False
        true = {(first, word, second) for first, word, second in scene.relations()}
        true |= {(second, INVERSE[word], first) for first, word, second in scene.relations() if word in INVERSE}
        return all((indices[first], word, indices[second]) in true for first, word, second in self.relations)

    @staticmethod
    def _find(scene: Scene, shape: str, colour: str, size: str | None, cell: tuple[int, int] | None) -> int | None:
        for index, thing in enumerate(scene.things):
            if (thing.shape, thing.colour) == (shape, colour):
                return index if size in (None, thing.size) and cell in (None, thing.cell) else None
        return None


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(0, "test", index) for index in range(300)]


def test_every_caption_is_true_of_its_scene(scenes: list[Scene]) -> None:
    for scene in scenes:
        for caption in captions(scene):
            assert Reading(caption).fits(scene), caption


def test_most_captions_are_true_of_no_other_scene(scenes: list[Scene]) -> None:
    read = [[Reading(caption) for caption in captions(scene)] for scene in scenes]

    fitting = [sum(reading.fits(other) for other in scenes) for readings in read for reading in readings]

    # The best that any model can reach: one guess among those that fit.
    assert sum(1 / count for count in fitting) / len(fitting) > 0.95


def test_the_first_two_describe_all_objects_and_the_background(scenes: list[Scene]) -> None:
    for scene in scenes:
        for caption in captions(scene)[:2]:
            reading = Reading(caption)
            assert len(reading.objects) == scene.count, caption
            assert reading.background is not None, caption


def test_the_third_describes_all_objects_and_one_relation(scenes: list[Scene]) -> None:
    for scene in scenes:
        reading = Reading(captions(scene)[2])
        assert len(reading.objects) == scene.count
        assert len(reading.relations) == min(1, scene.count - 1)


def test_the_fourth_describes_two_objects_with_their_positions(scenes: list[Scene]) -> None:
    for scene in scenes:
        reading = Reading(captions(scene)[3])
        assert 1 <= len(reading.objects) <= 2
        assert all(position is not None for *_, position in reading.objects)


def test_the_fifth_is_the_shortest_and_describes_the_background(scenes: list[Scene]) -> None:
    words = [[len(caption.split()) for caption in captions(scene)] for scene in scenes]
    assert sum(row[4] for row in words) < min(sum(row[index] for row in words) for index in range(2))
    assert all(Reading(captions(scene)[4]).background for scene in scenes)


def test_captions_are_sentences_that_common_text_towers_read_in_full(scenes: list[Scene]) -> None:
    for scene in scenes:
        for caption in captions(scene):
            assert re.fullmatch(r"[A-Z][a-z, ]+\.", caption)
            assert len(re.findall(r"\w+|[,.]", caption)) <= 46


def test_captions_are_always_the_same(scenes: list[Scene]) -> None:
    assert captions(scenes[0]) == captions(scenes[0])


def test_all_synonyms_are_used() -> None:
    spoken = Counter(
        word for index in range(500) for text in captions(make_scene(0, "train", index)) for word in text.split()
    )
    for synonym in ("disc", "box", "rhombus", "hoop", "tiny", "huge", "violet", "beneath", "within", "checkerboard"):
        assert spoken[synonym] or spoken[f"{synonym}."], synonym


def test_the_article_before_a_vowel_is_an() -> None:
    scene = Scene("plain", "grey", (Thing("star", "orange", "medium", 500, 500, 125),), (0, 0, 0))
    assert captions(scene)[0].startswith("An orange star")
