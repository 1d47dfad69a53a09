"""Scenes: each a pure function of seed, split and index, and none in two splits."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from diptych.config import Role
from diptych.data.scenes.graph import Scene, Thing, make_scene


def scene_of(*things: Thing) -> Scene:
    return Scene("plain", "grey", things, (0, 0, 0))


def thing(x: int, y: int, container: int | None = None) -> Thing:
    return Thing("star", "red", "small", x, y, 85, container)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(3, "train", index) for index in range(400)]


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    assert make_scene(0, "val", 7) == make_scene(0, "val", 7)
    others = [make_scene(1, "val", 7), make_scene(0, "test", 7), make_scene(0, "val", 8)]
    assert make_scene(0, "val", 7).identity() not in [other.identity() for other in others]


def test_no_two_scenes_of_the_default_dataset_are_alike() -> None:
    counts: dict[Role, int] = {"train": 3000, "val": 500, "test": 500}
    identities = Counter(
        make_scene(0, split, index).identity() for split, count in counts.items() for index in range(count)
    )
    assert max(identities.values()) == 1


def test_the_splits_share_no_scene_however_many_are_made() -> None:
    # One-object scenes are few enough to meet again, if anything does.
    alone = {
        split: {scene.identity() for index in range(2000) if (scene := make_scene(5, split, index)).count == 1}
        for split in ("train", "test")
    }
    assert not alone["train"] & alone["test"]


def test_scenes_have_one_to_four_objects_mostly_more_than_one(scenes: list[Scene]) -> None:
    counts = Counter(scene.count for scene in scenes)
    assert set(counts) == {1, 2, 3, 4}
    assert counts[1] < 0.1 * len(scenes)


def test_objects_stay_in_the_picture_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        for item in scene.things:
            assert item.half <= min(item.x, item.y) <= max(item.x, item.y) <= 1000 - item.half
        for first, second in combinations(scene.things, 2):
            if first.container is None:
                assert max(abs(first.x - second.x), abs(first.y - second.y)) > first.half + second.half


def test_what_is_inside_fits_and_has_another_colour_than_its_container(scenes: list[Scene]) -> None:
    nested = [scene for scene in scenes if scene.things[0].container is not None]
    assert len(nested) > 0.1 * len(scenes)
    for scene in nested:
        inner, outer = scene.things[0], scene.things[1]
        assert inner.half < 0.5 * outer.half
        assert inner.colour != outer.colour
        assert (0, "inside", 1) in scene.relations()


def test_no_scene_has_two_objects_of_the_same_shape_and_colour(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len({(item.shape, item.colour) for item in scene.things}) == scene.count


@pytest.mark.parametrize(
    ("second", "relation"),
    [((800, 400), "left of"), ((100, 400), "right of"), ((350, 900), "above"), ((250, 100), "below")],
)
def test_a_relation_follows_the_axis_on_which_objects_are_further_apart(second: tuple[int, int], relation: str) -> None:
    assert scene_of(thing(300, 500), thing(*second)).relations() == [(0, relation, 1)]


def test_the_graph_as_json_has_background_objects_and_relations() -> None:
    graph = scene_of(thing(500, 500, container=1), Thing("ring", "blue", "large", 500, 500, 200)).to_json()

    assert graph == {
        "background": {"pattern": "plain", "colour": "grey"},
        "objects": [
            {"shape": "star", "colour": "red", "size": "small", "x": 500, "y": 500},
            {"shape": "ring", "colour": "blue", "size": "large", "x": 500, "y": 500},
        ],
        "relations": [[0, "inside", 1]],
    }
