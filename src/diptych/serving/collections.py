"""Collections: named sets of images to search."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from diptych.errors import DiptychError
from diptych.serving.sources import DatasetSource, FilesSource, Item, Source
from diptych.serving.table_source import TableSource

DATASET = "dataset"
"""Name of the collection of the project's own images."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names that a collection may have."""


def open_source(description: Mapping[str, str], data: Path) -> Source:
    """Return the source of a description that `Source.description` gave; `data` is the folder of the dataset."""
    match description:
        case {"kind": "dataset", "split": split}:
            return DatasetSource(data, split)
        case {"kind": "files", "address": address}:
            return FilesSource(address)
        case {"kind": "table", "table": table, "files": files}:
            return TableSource(Path(table), files)
    raise DiptychError(f"A collection is described by {description}, which this diptych does not know.")


def fingerprint(items: list[Item]) -> str:
    """Return a SHA-256 that changes when any image of a collection, caption or attribute does."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.path, item.stamp]).encode())
    return digest.hexdigest()
