"""Files that only DVC's default remote has: found by the hashes of data.dvc and dvc.lock, and read in parts.

`dvc push` has put each file of data/ and of the outputs there, under its hash. So a machine needs no copy of the
pixels: what it lacks is read from the remote, and what it makes of them is sent there, as DVC would do it. This is the
store of `diptych.data.stored`.
"""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from diptych.data.stored import LostError, Range, Sent, StoredFile
from diptych.errors import DiptychError, first_line
from diptych.files import atomic_path, file_md5, write_json
from diptych.project.addresses import without_secret, without_secrets

SENT = ".diptych/sent.json"
"""File, relative to the project, with the entries for dvc.lock of outputs that were sent, by their paths."""
CACHE = "DIPTYCH_CACHE"
"""Variable that names the folder for what this machine keeps of the remote's files; on a fast disk of its own."""

_log = logging.getLogger(__name__)
_opening = threading.Lock()


def open_remote(path: Path) -> DvcRemote | None:
    """Return the default remote of the project that the absolute `path` is in; None where there is none.

    Raises:
        DiptychError: DVC's settings of the remote are wrong.
    """
    root = next((folder for folder in path.parents if (folder / ".dvc").is_dir()), None)
    if root is None:
        return None
    with _opening:
        return _remote(root, os.getpid())


class DvcRemote:
    """The default remote of the project at `root`, as DVC's settings and credentials open it; a `Store`."""

    def __init__(self, root: Path, name: str, settings: Any) -> None:
        from dvc.fs import get_cloud_fs

        kind, options, self._prefix = get_cloud_fs(settings, name=name)
        self.name = f"the DVC remote {name} ({without_secret(settings['remote'][name]['url'])})"
        self.cache = Path(os.environ.get(CACHE) or root / ".diptych" / "cache" / "remote")
        self._root, self._files = root, kind(**options)
        cache = settings["cache"].get("dir")
        self._local = (root / ".dvc" / cache if cache else root / ".dvc" / "cache") / "files" / "md5"
        self._listing = lru_cache(maxsize=8)(self._read_listing)
        if multiprocessing.parent_process() is None:
            _log.info("Files that are not on this disk are read from %s.", self.name)

    def find(self, path: Path) -> StoredFile | None:
        """Return the file that belongs at `path`, as `Store.find`."""
        relative = self._relative(path)
        for output, md5 in _outputs(self._root):
            if relative == output and not md5.endswith(".dir"):
                return StoredFile(path, md5, self)
            if output in relative.parents and md5.endswith(".dir"):
                listed = self._listing(md5, self._root / output).get(relative.relative_to(output).as_posix())
                return StoredFile(path, listed, self) if listed else None
        return None

    def files(self, folder: Path) -> list[StoredFile]:
        """Return the files that belong into an output `folder`, as `Store.files`."""
        md5 = next((md5 for output, md5 in _outputs(self._root) if output == self._relative(folder)), "")
        listed = self._listing(md5, folder) if md5.endswith(".dir") else {}
        return [StoredFile(folder / name, key, self) for name, key in listed.items()]

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, as `Store.read`."""
        paths = [self._path(part.file.key) for part in ranges]
        starts, stops = [part.start for part in ranges], [part.stop for part in ranges]
        contents = self._files.cat_ranges(paths, starts, stops, on_error="return")
        return [self._checked(content, part.file) for content, part in zip(contents, ranges, strict=True)]

    def lacking(self, keys: Collection[str]) -> set[str]:
        """Return those of the keys for which the remote has no file, as `Store.lacking`."""
        with self._explained("read"):
            return set(keys) - set(self._objects.list_oids_exists(sorted(keys)))

    def key_of(self, path: Path) -> str:
        """Return the MD5 of a file, as `Store.key_of`."""
        return file_md5(path)

    def send(self, path: Path) -> str:
        """Copy a file into the remote, as `Store.send`."""
        from dvc.fs import LocalFileSystem

        md5 = self.key_of(path)
        self._send(str(path), LocalFileSystem(), md5)
        return md5

    def send_folder(self, folder: Path, files: Mapping[str, Sent]) -> None:
        """Write the list of an output's files, and note it for dvc.lock.

        It is in the remote, and in DVC's cache, where DVC's own commands look for it.
        """
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        tree = Tree()  # type: ignore[no-untyped-call]
        for name, (key, _) in files.items():
            tree.add((name,), None, HashInfo("md5", key))
        tree.digest()
        self._send(tree.path, tree.fs, tree.oid)
        cache = self._local / tree.oid[:2] / tree.oid[2:]
        if not cache.exists():
            with atomic_path(cache, shared=True) as temporary:
                temporary.write_bytes(tree.as_bytes())
        facts = {"md5": tree.oid, "size": sum(file.size for file in files.values()), "nfiles": len(files)}
        write_json(self._root / SENT, {str(self._relative(folder)): facts})

    def _send(self, path: str, file_system: Any, md5: str) -> None:
        with self._explained("written"):
            self._objects.add(path, file_system, md5)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Raise what the remote raises as a DiptychError."""
        try:
            yield
        except Exception as error:  # of boto, of DVC, of the operating system, and others by the kind of the remote
            reason = without_secrets(first_line(error)) or type(error).__name__
            raise DiptychError(
                f"{self.name} cannot be {what}: {reason}. Check the network, the credentials and its space, then run "
                "again: what is finished is kept."
            ) from None

    @cached_property
    def _objects(self) -> Any:
        """The files of the remote by their hashes, as `dvc push` writes them."""
        from dvc_data.hashfile.db import get_odb

        return get_odb(self._files, self._files.join(self._prefix, "files", "md5"), hash_name="md5")  # type: ignore[no-untyped-call]

    def _relative(self, path: Path) -> PurePosixPath:
        return PurePosixPath(path.relative_to(self._root).as_posix())

    def _read_listing(self, md5: str, folder: Path) -> dict[str, str]:
        """Return the hashes of the files of an output `folder`, by their paths in it."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            return _listed((self._local / md5[:2] / md5[2:]).read_bytes())
        [content] = self._files.cat_ranges([self._path(md5)], [0], [None], on_error="return")
        content = self._checked(content, StoredFile(folder, md5, self))
        try:
            return _listed(content)
        except (ValueError, LookupError, TypeError) as error:
            raise LostError(f"The list of the files of {folder} is damaged in {self.name} ({error}).") from None

    def _path(self, md5: str) -> str:
        return str(self._files.join(self._prefix, "files", "md5", md5[:2], md5[2:]))

    def _checked(self, content: bytes | Exception, file: StoredFile) -> bytes:
        """Return the content, or raise a DiptychError for the error that came in its place."""
        if isinstance(content, bytes):
            return content
        if isinstance(content, FileNotFoundError):
            raise LostError(
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


def _listed(content: bytes) -> dict[str, str]:
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


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
