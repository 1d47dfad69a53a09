"""The promises of a dataset: which row breaks which promise, and the reason given for it.

One Great Expectations context judges one table a suite: a sound row, and rows that each break one promise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from diptych.config import Validate
from diptych.data.images import EIGHT_BIT_MODES, SIXTEEN_BIT_MODES
from diptych.validation.inspection import Inspection, Verdict
from diptych.validation.suites import Promise, caption_promises, counted, dataset_promises, image_promises

SETTINGS = Validate(max_caption_characters=20, min_side=32, max_aspect_ratio=4.0)
SPLITS = ["train", "val", "test"]
CAPTION = {"image_id": 1, "file_name": "1.png", "caption": "a dog", "characters": 5, "letters": 4}
BAD_CAPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"file_name": None, "image_id": 99}, "it belongs to image 99, which is not in captions.json"),
    ({"caption": None, "characters": None, "letters": None}, "no text (null)"),
    ({"caption": "", "characters": 0, "letters": None}, "empty or only blanks"),
    ({"caption": "x" * 21, "characters": 21, "letters": 21}, "21 characters, more than 20"),
    ({"caption": "12!", "characters": 3, "letters": 0}, "without a letter"),
    ({"caption": "null"}, "'null' stands for a missing value"),
]
IMAGE = {
    "shard": "images-00000.tar",
    "damage": None,
    "split": "train",
    "mode": "RGB",
    "width": 64,
    "height": 48,
    "shorter_side": 48.0,
    "aspect_ratio": 4 / 3,
    "captions": 1,
}
ABSENT = dict.fromkeys(("mode", "width", "height", "shorter_side", "aspect_ratio"))
BAD_IMAGES: list[tuple[dict[str, Any], str]] = [
    ({**ABSENT, "shard": None}, "missing: the shards have no such member"),
    ({**ABSENT, "damage": "empty file"}, "empty file"),
    ({"split": None}, "captions.json gives it no split"),
    ({"mode": "F"}, "mode F is not known"),
    ({"width": 64, "height": 31, "shorter_side": 31.0}, "64×31 pixels, a side is shorter than 32"),
    ({"width": 410, "height": 100, "aspect_ratio": 4.1}, "410×100 pixels, one side more than 4 times the other"),
    ({"captions": 0}, "no usable caption"),
]
LIMITS = [
    {"caption": "a" * 20, "characters": 20, "letters": 1},
    {"caption": "a", "characters": 1, "letters": 1},
]

Judge = Callable[[str, pd.DataFrame, list[Promise]], list[Verdict]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Inspection(tmp_path_factory.mktemp("docs")).judge


def table_of(key: str, sound: dict[str, Any], *changes: dict[str, Any]) -> pd.DataFrame:
    """Return a table of `sound` and its changed copies, with ids from 1 on."""
    return pd.DataFrame([{key: number, **sound, **change} for number, change in enumerate([{}, *changes], 1)])


def broken_by(table: pd.DataFrame, verdicts: list[Verdict]) -> list[list[str]]:
    """Return the reasons given for each row."""
    return [
        [verdict.promise.reason(table.iloc[row]) for verdict in verdicts if row in verdict.rows]
        for row in range(len(table))
    ]


def test_each_bad_caption_breaks_its_promise_and_no_other(judge: Judge) -> None:
    table = table_of("caption_id", CAPTION, *LIMITS, *(change for change, _ in BAD_CAPTIONS))
    verdicts = judge("captions", table, caption_promises(SETTINGS))
    assert broken_by(table, verdicts) == [[], [], [], *([reason] for _, reason in BAD_CAPTIONS)]


def test_each_bad_image_breaks_its_promise_and_no_other(judge: Judge) -> None:
    limits = {"width": 128, "height": 32, "shorter_side": 32.0, "aspect_ratio": 4.0}
    table = table_of("image_id", IMAGE, limits, *(change for change, _ in BAD_IMAGES))
    verdicts = judge("images", table, image_promises(SETTINGS))
    assert broken_by(table, verdicts) == [[], [], *([reason] for _, reason in BAD_IMAGES)]


@pytest.mark.parametrize(
    ("key", "sound", "promises"),
    [("caption_id", CAPTION, caption_promises(SETTINGS)), ("image_id", IMAGE, image_promises(SETTINGS))],
)
def test_rows_that_share_an_id_break_a_promise_of_the_dataset(
    judge: Judge, key: str, sound: dict[str, Any], promises: list[Promise]
) -> None:
    table = table_of(key, sound, {}, {}).assign(**{key: [1, 2, 2]})
    verdicts = judge(f"repeated {key}", table, promises)
    assert broken_by(table, verdicts) == [[], ["its id is not unique"], ["its id is not unique"]]
    assert [verdict.promise.breaks for verdict in verdicts if not verdict.success] == ["dataset"]


def test_leaks_and_empty_splits_break_promises_of_the_dataset(judge: Judge) -> None:
    accepted = pd.DataFrame(
        {
            "split": ["train", "train", "val", "extra"],
            "splits_with_content": [1, 2, 2, 0],
            "sha256": ["0123456789abcd"] * 4,
        }
    )
    content, leak = judge("accepted", accepted, dataset_promises(SPLITS, {"val": 1, "train": 2, "extra": 1}))
    assert content.missing == ["test"]
    assert content.promise.reason(pd.Series({"split": "test"})) == (
        "split 'test', which data.splits names, has no usable image: there are 'extra' (1), 'train' (2), 'val' (1)"
    )
    assert leak.rows == [1, 2]
    assert leak.promise.reason(accepted.iloc[1]) == "the same image (SHA-256 0123456789ab…) is in another split too"


def test_only_ids_images_of_captions_splits_and_leaks_stop_the_pipeline() -> None:
    promises = caption_promises(SETTINGS) + image_promises(SETTINGS) + dataset_promises(SPLITS, {})
    stopping = [promise.column for promise in promises if promise.breaks == "dataset"]
    assert stopping == ["caption_id", "file_name", "image_id", "split", "splits_with_content"]


def test_every_mode_that_becomes_rgb_is_accepted(judge: Judge) -> None:
    modes = [{"mode": mode} for mode in (*EIGHT_BIT_MODES, *SIXTEEN_BIT_MODES)]
    verdicts = judge("modes", table_of("image_id", IMAGE, *modes), image_promises(SETTINGS))
    assert all(verdict.success for verdict in verdicts)


def test_splits_are_listed_with_their_numbers_of_images() -> None:
    assert counted({"val": 2, "Train": 1}) == "'Train' (1), 'val' (2)"
    assert counted({}) == "none"
