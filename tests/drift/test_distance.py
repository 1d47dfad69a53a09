"""Drift: seen where pairs are of another kind, and not where a sample is merely small."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diptych.config import Params
from diptych.drift.distance import EMBEDDINGS, UNKNOWN, compare, witness_distance
from diptych.drift.profile import Embedded, Profile
from diptych.drift.quantiles import Sketch, critical_distance

PARAMS = Params()


def make(seed=0, images=1000, brightness=120.0, width=96.0, words=None, shift=0.0, weights="w"):
    generator = np.random.default_rng(seed)
    statistics = {
        "brightness": Sketch.of(generator.normal(brightness, 20, images)),
        "width": Sketch.of(np.full(images, width)),
    }
    pairs = generator.normal(0, 1, (min(images, 500), 16))
    pairs[:, 0] += shift
    words = words or {"a": 2 * images, "dog": images, "cat": images}
    embedded = Embedded(weights, (pairs / 4).astype(np.float16))
    return Profile(images, 5 * images, statistics, words, sum(words.values()), 0.01, np.zeros(0, np.uint32), embedded)


def drifted(incoming, reference=None, params=PARAMS):
    return [one.name for one in compare(reference or make(), incoming, params).distances if one.drifted]


def test_pairs_of_the_same_kind_have_not_drifted():
    assert drifted(make(1)) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"brightness": 90.0}, "brightness"),
        ({"width": 128.0}, "width"),
        ({"words": {"a": 600, "scan": 200, "dog": 200}}, None),
        ({"words": {"a": 500, "scan": 300, "dog": 200}}, UNKNOWN),
        ({"shift": 2.0}, EMBEDDINGS),
    ],
)
def test_pairs_of_another_kind_have_drifted_in_what_differs(change, name):
    assert drifted(make(1, **change)) == ([name] if name else [])


@pytest.mark.parametrize("images", [1, 2, 5])
def test_a_drop_of_a_few_images_does_not_cry_drift(images):
    assert drifted(make(1, images=images, brightness=90.0, words={"scan": 1, "a": 1}, shift=2.0)) == []


def test_a_drop_of_a_few_hundred_like_images_seldom_drifts():
    params = Params.model_validate({"retrain": {"drift": 0.0}})
    assert sum(bool(drifted(make(seed, images=200), params=params)) for seed in range(1, 41)) <= 2


def test_the_limit_is_that_of_the_parameters():
    lenient = Params.model_validate({"retrain": {"drift": 0.9}})

    assert drifted(make(1, brightness=90.0), params=lenient) == []


def test_embeddings_by_another_model_are_not_compared():
    assert EMBEDDINGS not in [one.name for one in compare(make(), make(1, weights="v"), PARAMS).distances]


def test_nothing_incoming_is_no_drift():
    nothing = Profile(0, 0, {"width": Sketch.of([])}, {}, 0, 0.0, np.zeros(0, np.uint32))
    found = compare(make(), nothing, PARAMS)

    assert found.reasons == []
    json.dumps(found.to_json(), allow_nan=False)
    assert "| width |" in found.render()


def test_it_is_told_in_sentences_as_a_table_and_as_values():
    found = compare(make(), make(1, brightness=60.0), PARAMS)

    (reason,) = found.reasons
    assert "brightness drifted by 0.8" in reason
    assert "retrain.drift" in reason
    assert "| **drifted** |" in found.render()
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["drifted"]
    assert [row["name"] for row in content["distances"] if row["drifted"]] == ["brightness"]


def test_a_witness_does_not_tell_apart_what_is_alike():
    distances = []
    for seed in range(60):
        both = np.random.default_rng(seed).normal(size=(400, 32))
        distances.append(witness_distance(both[:150], both[150:]))

    assert max(distances) < critical_distance(75, 125, 0.01 / 60)


def test_a_witness_sees_other_spread_around_the_same_mean():
    generator = np.random.default_rng(0)
    assert witness_distance(generator.normal(size=(300, 8)), 2 * generator.normal(size=(300, 8))) > 0.6


def test_a_witness_of_too_few_tells_nothing():
    assert witness_distance(np.zeros((1, 4)), np.ones((50, 4))) == 0
