"""Profiles of queries: what they hold, and that drift is seen in foreign queries and not in like ones."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest

from diptych.drift.distance import EMBEDDINGS, UNKNOWN
from diptych.drift.profile import Embedded, Profile, split_words, to_text, vocabulary
from diptych.drift.queries import SAMPLE, QueryProfile, Wording, compare_queries

MODEL = "ab" * 32
DIM = 8


def texts(seed, count, kind="w"):
    """Captions or queries whose words are as frequent as words are: few often, many seldom."""
    generator = np.random.default_rng(seed)
    numbers = np.minimum(generator.zipf(1.5, (count, 6)), 5000)
    return [" ".join(f"{kind}{number}" for number in row) for row in numbers]


def embeddings(seed, count, shift=0.0):
    rows = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    rows[:, 0] += shift
    return rows


def reference(count=2000, embedded=True):
    """Profile of the captions of as many images."""
    captions = texts(0, count)
    counts, total, unknown = vocabulary(list(range(count)), [split_words(text) for text in captions])
    pairs = np.concatenate([np.full((500, DIM), 9), embeddings(0, 500)], axis=1).astype(np.float16)
    contents = np.zeros(0, np.uint32)
    return Profile(count, count, {}, counts, total, unknown, contents, Embedded(MODEL, pairs) if embedded else None)


REFERENCE = reference()


def profile(asked, rows=None):
    made = QueryProfile(MODEL)
    for text, row in zip(asked, embeddings(1, len(asked)) if rows is None else rows, strict=True):
        made = made.with_text(text, row, REFERENCE.words)
    return made


def drifted(queries, limit=0.2, captions=REFERENCE):
    return [distance.name for distance in compare_queries(captions, queries, limit).distances if distance.drifted]


def test_queries_like_the_captions_seldom_drift_beyond_chance():
    found = [drifted(profile(texts(seed, 200), embeddings(seed, 200)), limit=0.0) for seed in range(1, 41)]

    assert sum(map(bool, found)) <= 2


def test_the_same_few_queries_over_and_over_are_no_more_certain_than_once():
    asked, rows = texts(1, 30), embeddings(1, 30)
    once, often = profile(asked, rows), profile(asked * 20, np.tile(rows, (20, 1)))

    assert (often.texts, len(often.sample)) == (600, len(set(asked)))
    assert compare_queries(REFERENCE, often, 0.2).distances == compare_queries(REFERENCE, once, 0.2).distances
    assert drifted(often, limit=0.0) == []


@pytest.mark.parametrize(
    ("kind", "shift", "names"), [("x", 0.0, [UNKNOWN]), ("w", 3.0, [EMBEDDINGS]), ("x", 3.0, [UNKNOWN, EMBEDDINGS])]
)
def test_foreign_queries_drift_in_what_differs(kind, shift, names):
    assert drifted(profile(texts(1, 200, kind), embeddings(1, 200, shift))) == names


def test_a_few_long_texts_of_unknown_words_among_many_short_ones_are_no_drift():
    pasted = [" ".join(f"{word}{number}" for number in range(150)) for word in ("x", "y")]

    assert drifted(profile([*texts(1, 300), *pasted]), limit=0.1) == []


def test_texts_without_words_make_the_share_of_unknown_words_no_more_certain():
    asked = texts(1, 50)
    unknown, more = (compare_queries(REFERENCE, profile(made), 0.2).distances[0] for made in (asked, [*asked, "???"]))

    assert more == unknown


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_queries_do_not_cry_drift(count):
    assert drifted(profile(texts(1, count, "x"), embeddings(1, count, 3.0))) == []


def test_it_is_told_in_sentences():
    (reason,) = compare_queries(REFERENCE, profile(texts(1, 200, "x")), 0.2).reasons

    assert reason.startswith("The queries' unknown words drifted by 0.")
    assert "retrain.drift" in reason


def test_without_embeddings_of_captions_words_alone_are_compared():
    found = compare_queries(reference(embedded=False), profile(texts(1, 50)), 0.2)

    assert [distance.name for distance in found.distances] == [UNKNOWN]


def test_no_queries_have_no_distances():
    found = compare_queries(REFERENCE, QueryProfile(MODEL), 0.2)

    assert (found.texts, found.compared, found.distances, found.reasons) == (0, 0, (), [])


def test_words_are_counted_as_those_of_captions_are():
    found = profile(["W1, w2!", "???", "w1 never-seen"])

    assert found.wording == Wording(5 / 3, 1 / 3)
    assert compare_queries(REFERENCE, found, 0.2).captions == Wording(6, REFERENCE.unknown_words)


def test_texts_without_words_have_none_that_are_unknown():
    assert profile(["???"]).wording == Wording(0, 0)


def test_texts_of_the_same_words_are_the_same():
    found = profile(["A dog.", "a dog", "dog, a"])

    assert (found.texts, len(found.sample)) == (3, 2)


def test_the_sample_is_of_the_smallest_hashes_in_any_order():
    """The slow twin sorts all of them."""
    asked = [f"text {number}" for number in range(SAMPLE + 200)]
    rows = embeddings(1, len(asked))
    by_hash = sorted((hashlib.sha256(text.encode()).hexdigest()[:16], row) for row, text in enumerate(asked))[:SAMPLE]

    for order in (np.arange(len(asked)), np.random.default_rng(0).permutation(len(asked))):
        found = profile([asked[row] for row in order], rows[order])
        assert list(found.sample) == [key for key, _ in by_hash]
        assert np.array_equal(found.embeddings, rows[[row for _, row in by_hash]].astype(np.float16))


def test_two_profiles_unite_to_that_of_both():
    asked, rows = [f"text {number}" for number in range(SAMPLE + 200)], embeddings(1, SAMPLE + 200)
    both = profile(asked, rows)

    united = profile(asked[:400], rows[:400]).united(profile(asked[300:], rows[300:]), texts=both.texts)

    assert united.to_json() == both.to_json()


def test_it_comes_back_from_json_and_holds_no_text():
    made = profile(texts(1, 20))
    content = json.loads(json.dumps(made.to_json(), allow_nan=False))

    assert QueryProfile.from_json(content).to_json() == content
    assert "w1" not in json.dumps(content)


@pytest.mark.parametrize("content", [{}, [], None, {"format": 2}, {"format": 1, "keys": ["a"]}])
def test_something_else_is_no_profile(content):
    with pytest.raises(ValueError, match=r"profile|format"):
        QueryProfile.from_json(content)


@pytest.mark.parametrize(
    "change",
    [
        *({"keys": ["a"]}, {"words": [1]}, {"embeddings": "AAA"}, {"embeddings": 1}, {"dimensions": 7}),
        *({"texts": math.inf}, {"texts": math.nan}, {"texts": -1}, {"texts": 10**400}, {"texts": [1]}),
        *({"unknown": [7] * 20}, {"unknown": [-1] * 20}, {"words": [10**400] * 20}, {"words": [math.inf] * 20}),
        {"embeddings": to_text(np.full((20, DIM), np.nan, "<f2"))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_profile_whose_parts_do_not_fit_is_none(change):
    with pytest.raises(ValueError, match=r"."):
        QueryProfile.from_json(profile(texts(1, 20)).to_json() | change)
