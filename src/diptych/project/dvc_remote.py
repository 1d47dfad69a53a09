"""Files that only DVC's default remote has: found by the hashes of data.dvc and dvc.lock, and read in parts.

`dvc push` has put each file of data/ and of the outputs there, under its hash. So a machine that trains needs no copy
of the pixels: what it lacks is read from the remote. This is the store of `diptych.data.stored`.
"""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from diptych.data.stored import Range, StoredFile
from diptych.errors import DiptychError, first_line
from diptych.project.addresses import without_secret, without_secrets

CACHE = "DIPTYCH_CACHE"
"""Variable that names the folder for what this machine keeps of the remote's files; on a fast disk of its own."""

_log = logging.getLogger(__name__)
_opening = threading.Lock()


def find(path: Path) -> StoredFile | None:
    """Return the file that belongs at `path` as DVC's default remote has it; None where DVC does not know it.

    Raises:
        DiptychError: the remote is needed for the list of the folder's files, and cannot be read.
    """
    root = next((folder for folder in path.parents if (folder / ".dvc").is_dir()), None)
    if root is None:
        return None
    with _opening:
        remote = _remote(root, os.getpid())
    if remote is None:
        return None
    relative = PurePosixPath(path.relative_to(root).as_posix())
    for output, md5 in _outputs(root):
        if relative == output and not md5.endswith(".dir"):
            return StoredFile(path, md5, remote)
        if output in relative.parents and md5.endswith(".dir"):
            listed = remote.listing(md5, root / output).get(relative.relative_to(output).as_posix())
            return StoredFile(path, listed, remote) if listed else None
    return None


class DvcRemote:
    """The default remote of the project at `root`, as DVC's settings and credentials open it; a `Store`."""

    def __init__(self, root: Path, name: str, settings: Any) -> None:
        from dvc.fs import get_cloud_fs

        kind, options, self._prefix = get_cloud_fs(settings, name=name)
        self.name = f"the DVC remote {name} ({without_secret(settings['remote'][name]['url'])})"
        self.cache = Path(os.environ.get(CACHE) or root / ".diptych" / "cache" / "remote")
        self._files = kind(**options)
        cache = settings["cache"].get("dir")
        self._local = (root / ".dvc" / cache if cache else root / ".dvc" / "cache") / "files" / "md5"
        self._listing = lru_cache(maxsize=8)(self._read_listing)
        if multiprocessing.parent_process() is None:
            _log.info("Files that are not on this disk are read from %s.", self.name)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, as `Store.read`."""
        paths = [self._path(part.file.key) for part in ranges]
        starts, stops = [part.start for part in ranges], [part.stop for part in ranges]
        contents = self._files.cat_ranges(paths, starts, stops, on_error="return")
        return [self._checked(content, part.file) for content, part in zip(contents, ranges, strict=True)]

    def listing(self, md5: str, folder: Path) -> dict[str, str]:
        """Return the hashes of the files of an output `folder`, by their paths in it.

        Raises:
            DiptychError: neither DVC's cache nor the remote has the list.
        """
        return self._listing(md5, folder)

    def _read_listing(self, md5: str, folder: Path) -> dict[str, str]:
        try:
            content = (self._local / md5[:2] / md5[2:]).read_bytes()
        except OSError:
            [content] = self._files.cat_ranges([self._path(md5)], [0], [None], on_error="return")
            content = self._checked(content, StoredFile(folder, md5, self))
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}
        except (ValueError, LookupError, TypeError) as error:
            raise DiptychError(f"The list of the files of {folder} is damaged in {self.name} ({error}).") from None

    def _path(self, md5: str) -> str:
        return str(self._files.join(self._prefix, "files", "md5", md5[:2], md5[2:]))

    def _checked(self, content: bytes | Exception, file: StoredFile) -> bytes:
        """Return the content, or raise a DiptychError for the error that came in its place."""
        if isinstance(content, bytes):
            return content
        if isinstance(content, FileNotFoundError):
            raise DiptychError(
                f"{file.path} is neither on this disk nor in {self.name} (as {file.key}). Run `dvc push` on a machine "
                "that has it."
            ) from None
        if isinstance(content, OSError) and content.errno == errno.EINVAL:
            return b""  # S3's answer where the file ends before the range begins
        raise DiptychError(
            f"{file.path} is not on this disk, and {self.name} cannot be read: "
            f"{without_secrets(first_line(content)) or type(content).__name__}. Check the network and the credentials, "
            "then run again: what is finished is kept, and a training goes on from its last checkpoint."
        ) from None


@lru_cache(maxsize=4)
def _remote(root: Path, process: int) -> DvcRemote | None:  # noqa: ARG001 - connections do not outlive a fork
    """Return the project's default remote; None where there is none."""
    from dvc.config import Config
    from dvc.exceptions import DvcException

    try:
        settings = Config(str(root / ".dvc"))
        name = settings["core"].get("remote")
        return DvcRemote(root, name, settings) if name else None
    except DvcException as error:
        raise DiptychError(f"The DVC remote of {root} cannot be used: {first_line(error)}.") from None


def _outputs(root: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield the paths that data.dvc and dvc.lock name, relative to `root`, with their hashes."""
    for path in (root / "data.dvc", root / "dvc.lock"):
        try:
            yield from _outputs_of(path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue


@lru_cache(maxsize=16)
def _outputs_of(path: Path, modified: int) -> list[tuple[PurePosixPath, str]]:  # noqa: ARG001 - part of the key
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    records = [content, *content.get("stages", {}).values()]
    outs = [out for record in records for out in record.get("outs", [])]
    # Hashes of DVC 2 are of other bytes, and in other places.
    return [(PurePosixPath(out["path"]), out["md5"]) for out in outs if out.get("hash") == "md5" and "md5" in out]
