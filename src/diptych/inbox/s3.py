"""An inbox in S3, or in what speaks its protocol; AWS_ENDPOINT_URL and the other usual variables say where and as whom.

Its drops are fetched one at a time into a folder of the project's own.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diptych.errors import DiptychError
from diptych.files import remove
from diptych.inbox.drops import CAPTIONS, S3, Drop, Inbox, is_looked_at, make_drop, unsafe_names

_OWN_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}
_VERSION = "?versionId="


class S3Inbox(Inbox):
    """The prefix that `address` names; what is fetched lies in `folder` meanwhile.

    Raises:
        DiptychError: s3fs is not installed, or the address names no bucket.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address.rstrip("/")
        self.folder = folder
        if not address.removeprefix(S3).strip("/"):
            raise DiptychError(f"The inbox {address} names no bucket: s3://bucket/prefix is needed.")
        self._root = self.address.removeprefix(S3) + "/"
        self._files = _file_system()

    def drops(self) -> list[Drop]:
        """As `Inbox`."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for name, stamp in self._listed():
            place, _, file = name.partition("/")
            if file and is_looked_at(place):
                found[place][file] = stamp
        complete = {place: stamps for place, stamps in found.items() if set(stamps) & set(CAPTIONS)}
        return [
            make_drop(place, stamps, unsafe_names([place]) or unsafe_names(stamps) or _with_version([place, *stamps]))
            for place, stamps in sorted(complete.items())
        ]

    @contextmanager
    def opened(self, drop: Drop) -> Iterator[Path]:
        """As `Inbox`."""
        remove(self.folder)
        # The drop's own name is not needed, so it is not used.
        target = self.folder / "drop"
        target.mkdir(parents=True)
        try:
            keys = [f"{self._root}{drop.place}/{name}" for name in drop.files]
            with self._explained():
                self._files.get(keys, [str(target / name) for name in drop.files])
            yield target
        finally:
            remove(self.folder)

    def _listed(self) -> list[tuple[str, str]]:
        """Names below the prefix, and the size and etag of each; what stands for a folder is left out."""
        with self._explained():
            found: dict[str, dict[str, Any]] = self._files.find(self._root, detail=True)
        return [
            (key.removeprefix(self._root), f"{info['size']} {info['ETag']}")
            for key, info in found.items()
            if key.startswith(self._root) and info["type"] == "file" and not key.endswith("/")
        ]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

        try:
            yield
        except (OSError, BotoCoreError, ClientError) as error:
            if isinstance(error, OSError) and error.errno in _OWN_DISK and error.filename:
                raise
            raise DiptychError(
                f"The inbox {self.address} cannot be read: {error}. "
                "Check its name, AWS_ENDPOINT_URL and the credentials."
            ) from None


def _with_version(names: Iterable[str]) -> str:
    """What is wrong with the first of `names` that s3fs reads as that of a version of another object."""
    found = next((name for name in names if _VERSION in name), None)
    return f"The name {found!r} has {_VERSION} in it, which stands for a version of an object." if found else ""


def _file_system() -> Any:
    try:
        from s3fs import S3FileSystem  # type: ignore[import-untyped]
    except ImportError:
        raise DiptychError("An inbox in S3 needs s3fs: install diptych with its extra `stack`.") from None
    # Each look at the inbox is a new one.
    return S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
