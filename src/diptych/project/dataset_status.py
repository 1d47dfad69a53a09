"""What the dataset holds, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from diptych.data.captions import read_dataset
from diptych.data.shards import shard_paths
from diptych.errors import DiptychError
from diptych.project.git import how_to_restore, refuse_conflict


@dataclass(frozen=True)
class DatasetStatus:
    """Counts by split; `bytes` of all files; `version` is DVC's hash, None if the dataset was never added to DVC.

    `changed` tells that the files are not those of the version (by their number and size, which costs nothing).
    """

    images: dict[str, int]
    captions: dict[str, int]
    shards: int
    bytes: int
    version: str | None
    changed: bool

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def render(self) -> list[str]:
        """As lines of text."""
        width = max(len("split"), len("total"), *map(len, self.images))
        rows = [
            ("split", "images", "captions"),
            *((split, f"{count:,}", f"{self.captions[split]:,}") for split, count in self.images.items()),
            ("total", f"{sum(self.images.values()):,}", f"{sum(self.captions.values()):,}"),
        ]
        version = self.version or "none yet: `dvc add data` makes one"
        if self.version and self.changed:
            version += ", but the files have changed since: `dvc add data` makes a new version"
        return [
            *(f"{split:<{width}}  {images:>9}  {captions:>9}" for split, images, captions in rows),
            f"shards   {self.shards:,}",
            f"size     {self.bytes / 1e6:,.1f} MB",
            f"version  {version}",
        ]


def dataset_status(folder: Path) -> DatasetStatus:
    """The status of the dataset in `folder`; its version stands in the .dvc file beside the folder.

    Raises:
        DiptychError: there is no dataset, or its captions file or the .dvc file is damaged.
    """
    dataset = read_dataset(folder)
    split_of = {record["id"]: str(record.get("split", "(none)")) for record in dataset.images}
    images = Counter(split_of.values())
    captions = Counter(split_of.get(record["image_id"], "(no image)") for record in dataset.annotations)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    version = _read_version(folder.with_name(f"{folder.name}.dvc"))
    return DatasetStatus(
        images={split: images[split] for split in {**images, **captions}},
        captions={split: captions[split] for split in {**images, **captions}},
        shards=len(shard_paths(folder)),
        bytes=size,
        version=version.get("md5"),
        changed=bool(version) and (version.get("nfiles"), version.get("size")) != (len(files), size),
    )


def _read_version(dvc_file: Path) -> dict[str, Any]:
    refuse_conflict(dvc_file)
    try:
        output: dict[str, Any] = yaml.safe_load(dvc_file.read_text(encoding="utf-8"))["outs"][0]
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError, KeyError, IndexError, TypeError):
        raise DiptychError(f"{dvc_file} is not a .dvc file. {how_to_restore(dvc_file)}") from None
    return output
