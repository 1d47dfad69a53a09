"""The promises of a dataset as Great Expectations suites, each with the reason given for a row that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from diptych.config import Validate
from diptych.data.captions import MISSING_WORDS
from diptych.data.images import EIGHT_BIT_MODES, SIXTEEN_BIT_MODES

_UNIQUE = "ExpectColumnValuesToBeUnique"
_NOT_NULL = "ExpectColumnValuesToNotBeNull"
_BETWEEN = "ExpectColumnValuesToBeBetween"


@dataclass(frozen=True)
class Promise:
    """One expectation on a column.

    Attributes:
        expectation: name of a class in great_expectations.expectations.
        column: name of the column.
        breaks: "row": a row that breaks the promise is quarantined; "dataset": the pipeline stops.
        reason: function from a row that breaks the promise to what is wrong with it, in a few words.
        options: arguments of the expectation.
    """

    expectation: str
    column: str
    breaks: Literal["row", "dataset"]
    reason: Callable[[pd.Series], str]
    options: dict[str, Any] = field(default_factory=dict)


def caption_promises(settings: Validate) -> list[Promise]:
    """Return the promises of the captions.

    Their table has the columns caption_id, caption, characters, letters, image_id, and file_name of the image.
    """
    longest = settings.max_caption_characters
    return [
        Promise(_UNIQUE, "caption_id", "dataset", lambda _: "its id is not unique"),
        Promise(
            _NOT_NULL,
            "file_name",
            "dataset",
            lambda row: f"it belongs to image {row['image_id']}, which is not in captions.json",
        ),
        Promise(_NOT_NULL, "caption", "row", lambda _: "no text (null)"),
        Promise(_BETWEEN, "characters", "row", lambda _: "empty or only blanks", {"min_value": 1}),
        Promise(
            _BETWEEN,
            "characters",
            "row",
            lambda row: f"{int(row['characters'])} characters, more than {longest}",
            {"max_value": longest},
        ),
        Promise(_BETWEEN, "letters", "row", lambda _: "without a letter", {"min_value": 1}),
        Promise(
            "ExpectColumnValuesToNotBeInSet",
            "caption",
            "row",
            lambda row: f"{row['caption']!r} stands for a missing value",
            {"value_set": list(MISSING_WORDS)},
        ),
    ]


def image_promises(settings: Validate) -> list[Promise]:
    """Return the promises of the images.

    Their table has the columns of `scan_images`, and shorter_side, aspect_ratio, captions (the number of usable ones).
    """
    return [
        Promise(_UNIQUE, "image_id", "dataset", lambda _: "its id is not unique"),
        Promise(_NOT_NULL, "shard", "row", lambda _: "missing: the shards have no such member"),
        Promise("ExpectColumnValuesToBeNull", "damage", "row", lambda row: str(row["damage"])),
        Promise(_NOT_NULL, "split", "row", lambda _: "captions.json gives it no split"),
        Promise(
            "ExpectColumnValuesToBeInSet",
            "mode",
            "row",
            lambda row: f"mode {row['mode']} is not known",
            {"value_set": [*EIGHT_BIT_MODES, *SIXTEEN_BIT_MODES]},
        ),
        Promise(
            _BETWEEN,
            "shorter_side",
            "row",
            lambda row: f"{_size(row)} pixels, a side is shorter than {settings.min_side}",
            {"min_value": settings.min_side},
        ),
        Promise(
            _BETWEEN,
            "aspect_ratio",
            "row",
            lambda row: f"{_size(row)} pixels, one side more than {settings.max_aspect_ratio:g} times the other",
            {"max_value": settings.max_aspect_ratio},
        ),
        Promise(_BETWEEN, "captions", "row", lambda _: "no usable caption", {"min_value": 1}),
    ]


def dataset_promises(splits: list[str], images: Mapping[str, int]) -> list[Promise]:
    """Return the promises of the accepted images as a whole.

    Their table has the columns split, sha256, and splits_with_content: in how many of `splits` the image's bytes occur.
    `images` are the numbers of accepted images by split, for the message.
    """
    return [
        Promise(
            "ExpectColumnDistinctValuesToContainSet",
            "split",
            "dataset",
            lambda row: (
                f"split {row['split']!r}, which data.splits names, has no usable image: there are {counted(images)}"
            ),
            {"value_set": splits},
        ),
        Promise(
            _BETWEEN,
            "splits_with_content",
            "dataset",
            lambda row: f"the same image (SHA-256 {row['sha256'][:12]}…) is in another split too",
            {"max_value": 1},
        ),
    ]


def _size(row: pd.Series) -> str:
    return f"{int(row['width'])}×{int(row['height'])}"


def counted(images: Mapping[str, int]) -> str:
    """Return the splits and their numbers of images, as a message shows them."""
    return ", ".join(f"{split!r} ({count})" for split, count in sorted(images.items())) or "none"
