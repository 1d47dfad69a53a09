"""Drops for an inbox: images with their captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import make_photo

__all__ = ["Rows", "make_photo", "photos", "write_drop"]

Rows = Sequence[tuple[str, bytes, Sequence[str]]]
"""Name, content and captions of images."""


def write_drop(folder: Path, images: Rows, split: str | None = None) -> Path:
    """A drop with captions.json and its images in images/."""
    (folder / "images").mkdir(parents=True)
    records: list[Mapping[str, Any]] = []
    annotations: list[Mapping[str, Any]] = []
    for number, (name, content, captions) in enumerate(images, start=1):
        (folder / "images" / name).write_bytes(content)
        records.append({"id": number, "file_name": name} | ({"split": split} if split else {}))
        for text in captions:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": text})
    (folder / "captions.json").write_text(json.dumps({"images": records, "annotations": annotations}))
    return folder


def photos(*seeds: int) -> list[tuple[str, bytes, Sequence[str]]]:
    """Sound images with two captions each."""
    return [(f"{seed}.png", make_photo(seed), [f"thing {seed}", f"something like {seed}"]) for seed in seeds]
