"""A dataset whose images are to be prepared, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from diptych.config import Preprocess
from diptych.data.images import open_image, to_pixels
from diptych.data.preparing import prepare_images
from diptych.data.shards import ShardWriter, list_members

SETTINGS = Preprocess(image_size=32)


class Project:
    """A data folder, its manifest, and calls of `prepare_images` into numbered folders."""

    def __init__(self, root: Path, photo: Callable[..., bytes]) -> None:
        self.root, self.photo, self.runs = root, photo, 0
        self.contents: dict[str, bytes] = {}
        self.cache = root / "cache"

    def add(self, *seeds: int) -> None:
        with ShardWriter(self.root / "data") as writer:
            for seed in seeds:
                self.contents[f"{seed:03d}.png"] = self.photo(seed)
                writer.add(f"{seed:03d}.png", self.contents[f"{seed:03d}.png"])

    @property
    def manifest(self) -> pd.DataFrame:
        rows = [
            {
                "image_id": int(member.name[:3]),
                "split": "train",
                "file_name": member.name,
                "source": member.name,
                "shard": member.shard,
                "offset": member.offset,
                "bytes": member.size,
                "width": 64,
                "height": 48,
                "sha256": hashlib.sha256(self.contents[member.name]).hexdigest(),
            }
            for member in list_members(self.root / "data")
        ]
        return pd.DataFrame(rows)

    def prepare(
        self, manifest: pd.DataFrame | None = None, settings: Preprocess = SETTINGS, workers: int = 1
    ) -> tuple[int, Path]:
        self.runs += 1
        output = self.root / f"run-{self.runs}"
        manifest = self.manifest if manifest is None else manifest
        data = self.root / "data"
        reused = prepare_images(data, manifest, output, cache=self.cache, settings=settings, workers=workers)
        return reused, output

    def expected(self, name: str) -> np.ndarray:
        return to_pixels(open_image(self.contents[name], 10**6), 32, "stretch")
