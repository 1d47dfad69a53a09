"""An inbox in S3. Drops are fetched one at a time into a folder of the project."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diptych.errors import DiptychError
from diptych.files import remove
from diptych.inbox.drops import CAPTIONS, ChangedError, Drop, Inbox, make_drop, may_be_drop, name_problem
from diptych.remote import S3, errors_explained, file_system

_VERSION = "?versionId="


class S3Inbox(Inbox):
    """The prefix at `address`; `folder` holds the drop that is fetched.

    Raises:
        DiptychError: s3fs is not installed, or the address names no bucket.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address.rstrip("/")
        self.folder = folder
        if not address.removeprefix(S3).strip("/"):
            raise DiptychError(f"The inbox {address} names no bucket: s3://bucket/prefix is needed.")
        self._root = self.address.removeprefix(S3) + "/"
        self._files = file_system("An inbox")

    def drops(self) -> list[Drop]:
        """Return the complete drops, as `Inbox`."""
        return self._drops(self._root)

    def _drops(self, prefix: str) -> list[Drop]:
        """Return the complete drops with files below `prefix`, which is the inbox or the folder of a drop."""
        folders: dict[str, dict[str, str]] = defaultdict(dict)
        for name, stamp in self._list(prefix):
            folder, _, file = name.partition("/")
            if file and may_be_drop(folder):
                folders[folder][file] = stamp
        complete = {folder: stamps for folder, stamps in folders.items() if set(stamps) & set(CAPTIONS)}
        return [
            make_drop(folder, stamps, name_problem([folder]) or name_problem(stamps) or _versioned([folder, *stamps]))
            for folder, stamps in sorted(complete.items())
        ]

    @contextmanager
    def opened(self, drop: Drop) -> Iterator[Path]:
        """Fetch the drop and give its folder, as `Inbox`."""
        remove(self.folder)
        # A name from outside should not become a path here.
        target = self.folder / "drop"
        target.mkdir(parents=True)
        try:
            self._fetch(drop, target)
            yield target
        finally:
            remove(self.folder)

    def _fetch(self, drop: Drop, target: Path) -> None:
        self._require_unchanged(drop)
        keys = [f"{self._root}{drop.folder}/{name}" for name in drop.files]
        try:
            with errors_explained(f"The inbox {self.address}"):
                self._files.get(keys, [str(target / name) for name in drop.files])
        except DiptychError:
            # An object may have been deleted meanwhile, which is a change of the drop and no fault of the server.
            self._require_unchanged(drop)
            raise
        self._require_unchanged(drop)

    def _require_unchanged(self, drop: Drop) -> None:
        if drop not in self._drops(f"{self._root}{drop.folder}/"):
            raise ChangedError(drop)

    def _list(self, prefix: str) -> list[tuple[str, str]]:
        """Return the files below `prefix`, without placeholders of folders: name in the inbox, then size and etag."""
        with errors_explained(f"The inbox {self.address}"):
            objects: dict[str, dict[str, Any]] = self._files.find(prefix, detail=True)
        return [
            (key.removeprefix(self._root), f"{info['size']} {info['ETag']}")
            for key, info in objects.items()
            if key.startswith(prefix) and info["type"] == "file" and not key.endswith("/")
        ]


def _versioned(names: Iterable[str]) -> str:
    """Return the problem of the first of `names` that s3fs reads as a version of another object; empty if none is."""
    name = next((name for name in names if _VERSION in name), None)
    return f"The name {name!r} has {_VERSION} in it, which stands for a version of an object." if name else ""
