"""Statistics of the dataset: images, captions, shards, bytes, and whether they are the recorded version."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from diptych.data.captions import read_dataset
from diptych.data.shards import shard_paths
from diptych.project.record import read_record
from diptych.project.workspace import Workspace


@dataclass(frozen=True)
class DatasetStatus:
    """Counts by split; `bytes` of all files; `version` is DVC's hash, None if the dataset was never added to DVC.

    `changed`: the files are not those of the version, by their number and total size, which cost nothing to compare.
    `interrupted`: they are what an import left that was killed.
    """

    images: dict[str, int]
    captions: dict[str, int]
    shards: int
    bytes: int
    version: str | None
    changed: bool
    interrupted: bool

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain values."""
        return asdict(self)

    def render(self) -> list[str]:
        """Return the status as lines of text."""
        width = max(len("split"), len("total"), *map(len, self.images))
        rows = [
            ("split", "images", "captions"),
            *((split, f"{count:,}", f"{self.captions[split]:,}") for split, count in self.images.items()),
            ("total", f"{sum(self.images.values()):,}", f"{sum(self.captions.values()):,}"),
        ]
        version = self.version or "none yet: `dvc add data` makes one"
        if self.interrupted:
            version = f"{self.version or 'none yet'}; a change of it was interrupted: the next `diptych run` undoes it"
        elif self.version and self.changed:
            version += ", but the files have changed since: `dvc add data` makes a new version"
        return [
            *(f"{split:<{width}}  {images:>9}  {captions:>9}" for split, images, captions in rows),
            f"shards   {self.shards:,}",
            f"size     {self.bytes / 1e6:,.1f} MB",
            f"version  {version}",
        ]


def dataset_status(workspace: Workspace) -> DatasetStatus:
    """Return the status of the project's dataset.

    Raises:
        DiptychError: there is no dataset, or its captions file or data.dvc is damaged.
    """
    dataset = read_dataset(workspace.data)
    split_of = {record["id"]: str(record.get("split", "(none)")) for record in dataset.images}
    images = Counter(split_of.values())
    captions = Counter(split_of.get(record["image_id"], "(no image)") for record in dataset.annotations)
    record = read_record(workspace)
    version = record["outs"][0] if record else {}
    recorded = version.get("nfiles"), version.get("size")
    files = [path for path in workspace.data.rglob("*") if path.is_file()]
    # A dataset that only the DVC remote has is as it was recorded.
    found = (len(files), sum(path.stat().st_size for path in files)) if workspace.data.exists() else recorded
    return DatasetStatus(
        images={split: images[split] for split in {**images, **captions}},
        captions={split: captions[split] for split in {**images, **captions}},
        shards=len(shard_paths(workspace.data)),
        bytes=found[1] or 0,
        version=version.get("md5"),
        changed=bool(version) and recorded != found,
        interrupted=workspace.was_interrupted(),
    )
