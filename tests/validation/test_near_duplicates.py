"""The search for near-duplicates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from diptych.validation import near_duplicates as module
from diptych.validation.near_duplicates import near_duplicates


def manifest_of(hashes: list[int], splits: list[str]) -> pd.DataFrame:
    rows = [
        {"image_id": number, "split": split, "source": f"{number}.png", "phash": f"{value:016x}"}
        for number, (value, split) in enumerate(zip(hashes, splits, strict=True))
    ]
    return pd.DataFrame(rows)


def naive_pairs(hashes: list[int], splits: list[str], distance: int) -> list[tuple[int, int, int]]:
    order = ["train", "val", "test"]
    return sorted(
        ((hashes[i] ^ hashes[j]).bit_count(), i, j)
        for i in range(len(hashes))
        for j in range(len(hashes))
        if splits[i] in order
        and splits[j] in order
        and order.index(splits[i]) < order.index(splits[j])
        and (hashes[i] ^ hashes[j]).bit_count() <= distance
    )


@pytest.mark.parametrize("chunk", [7, 2**20])
@pytest.mark.parametrize("limit", [5, 100_000])
@pytest.mark.parametrize("distance", [0, 4, 30])
def test_near_duplicates_are_those_of_the_obvious_computation(
    distance: int, limit: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    random = np.random.default_rng(0)
    hashes = [int(value) for value in random.integers(0, 2**64, 40, np.uint64)]
    hashes += [value ^ (1 << int(random.integers(64))) for value in hashes] * 10
    splits = random.choice(["train", "val", "test", "extra"], len(hashes)).tolist()
    count, pairs = near_duplicates(manifest_of(hashes, splits), ["train", "val", "test"], distance, limit)
    naive = naive_pairs(hashes, splits, distance)
    assert count == len(naive)
    assert [(pair["distance"], pair["first"]["image_id"], pair["second"]["image_id"]) for pair in pairs] == naive[
        :limit
    ]


def test_only_the_closest_pairs_are_listed_and_all_are_counted() -> None:
    count, pairs = near_duplicates(manifest_of([0] * 10 + [1, 0], ["train"] * 10 + ["val"] * 2), ["train", "val"], 4, 3)
    assert count == 20
    assert [pair["distance"] for pair in pairs] == [0, 0, 0]


def test_no_images_have_no_near_duplicates() -> None:
    empty = manifest_of([0], ["train"]).iloc[:0]
    assert near_duplicates(empty, ["train", "val"], 4, 3) == (0, [])
