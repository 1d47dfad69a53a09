"""What a dataset promises, as Great Expectations suites: each promise, and what it says of a row that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from diptych.config import Validate
from diptych.data.captions import MISSING_WORDS

KNOWN_MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"]
KNOWN_MODES += ["I;16", "I;16L", "I;16B", "I;16N"]
"""Pillow's modes of which it is known how they become RGB."""


@dataclass(frozen=True)
class Promise:
    """One expectation on a column.

    Attributes:
        expectation: its class in great_expectations.expectations.
        breaks: "row": rows that break it are quarantined; "dataset": it stops the pipeline.
        reason: what is wrong with a row that breaks it, in a few words.
    """

    expectation: str
    column: str
    breaks: Literal["row", "dataset"]
    reason: Callable[[pd.Series], str]
    options: dict[str, Any] = field(default_factory=dict)


def caption_promises(settings: Validate) -> list[Promise]:
    """Of the table of all annotations: caption_id, caption, characters, letters, file_name of the image."""
    most = settings.max_caption_characters
    return [
        Promise("ExpectColumnValuesToBeUnique", "caption_id", "dataset", lambda row: "its id is not unique"),
        Promise(
            "ExpectColumnValuesToNotBeNull",
            "file_name",
            "dataset",
            lambda row: f"it belongs to image {row['image_id']}, which is not in captions.json",
        ),
        Promise("ExpectColumnValuesToNotBeNull", "caption", "row", lambda row: "no text (null)"),
        Promise(
            "ExpectColumnValuesToBeBetween", "characters", "row", lambda row: "empty or only blanks", {"min_value": 1}
        ),
        Promise(
            "ExpectColumnValuesToBeBetween",
            "characters",
            "row",
            lambda row: f"{int(row['characters'])} characters, more than {most}",
            {"max_value": most},
        ),
        Promise("ExpectColumnValuesToBeBetween", "letters", "row", lambda row: "without a letter", {"min_value": 1}),
        Promise(
            "ExpectColumnValuesToNotBeInSet",
            "caption",
            "row",
            lambda row: f"{row['caption']!r} stands for a missing value",
            {"value_set": list(MISSING_WORDS)},
        ),
    ]


def image_promises(settings: Validate) -> list[Promise]:
    """Of the table of all image records: what the scan saw, and shorter_side, aspect_ratio, captions (usable ones)."""
    return [
        Promise("ExpectColumnValuesToBeUnique", "image_id", "dataset", lambda row: "its id is not unique"),
        Promise("ExpectColumnValuesToNotBeNull", "shard", "row", lambda row: "missing: the shards have no such member"),
        Promise("ExpectColumnValuesToBeNull", "damage", "row", lambda row: str(row["damage"])),
        Promise("ExpectColumnValuesToNotBeNull", "split", "row", lambda row: "captions.json gives it no split"),
        Promise(
            "ExpectColumnValuesToBeInSet",
            "mode",
            "row",
            lambda row: f"mode {row['mode']} is not known",
            {"value_set": KNOWN_MODES},
        ),
        Promise(
            "ExpectColumnValuesToBeBetween",
            "shorter_side",
            "row",
            lambda row: f"{_size(row)} pixels, a side is shorter than {settings.min_side}",
            {"min_value": settings.min_side},
        ),
        Promise(
            "ExpectColumnValuesToBeBetween",
            "aspect_ratio",
            "row",
            lambda row: f"{_size(row)} pixels, one side more than {settings.max_aspect_ratio:g} times the other",
            {"max_value": settings.max_aspect_ratio},
        ),
        Promise("ExpectColumnValuesToBeBetween", "captions", "row", lambda row: "no usable caption", {"min_value": 1}),
    ]


def dataset_promises(splits: list[str], images: Mapping[str, int]) -> list[Promise]:
    """Of the table of accepted images: split, and splits_with_content, in how many of `splits` its content occurs.

    `images` are the accepted images by split, for the message.
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
            "ExpectColumnValuesToBeBetween",
            "splits_with_content",
            "dataset",
            lambda row: f"the same image (SHA-256 {row['sha256'][:12]}…) is in another split too",
            {"max_value": 1},
        ),
    ]


def _size(row: pd.Series) -> str:
    return f"{int(row['width'])}×{int(row['height'])}"


def counted(images: Mapping[str, int]) -> str:
    """Return splits with their numbers of images, as a message shows them."""
    return ", ".join(f"{split!r} ({count})" for split, count in sorted(images.items())) or "none"
