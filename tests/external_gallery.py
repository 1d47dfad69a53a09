"""A small gallery of another model, in files: embeddings, captions and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OWN = np.array([0, 2, 1, 2, 0, 3])
"""Each caption's image; captions are in no order."""


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    image = generator.normal(size=(4, 8)).astype(np.float32)
    return image, (image[OWN] + 0.8 * generator.normal(size=(6, 8))).astype(np.float32)


def write_gallery(folder: Path) -> Path:
    """Write image.npy, text.npy, captions.json and images/."""
    for name, rows in zip(("image", "text"), embeddings(), strict=True):
        np.save(folder / f"{name}.npy", rows)
    write_captions(folder)
    (folder / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (60, 40), (60 * number, 90, 90)).save(folder / "images" / f"{number}.jpg")
    return folder


def write_captions(folder: Path, **changes: Any) -> None:
    content = {
        "images": [{"id": 10 + number, "file_name": f"{number}.jpg"} for number in range(4)],
        "annotations": [
            {"id": number, "image_id": 10 + int(own), "caption": f"words {number}"} for number, own in enumerate(OWN)
        ],
    }
    (folder / "captions.json").write_text(json.dumps({**content, **changes}))
