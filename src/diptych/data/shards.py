"""The images of a dataset in uncompressed tar files of at most a thousand members; written once, never changed."""

from __future__ import annotations

import os
import re
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from diptych.errors import DiptychError

MAX_MEMBERS = 1000
"""A shard that changed would be stored and prepared anew in full, so shards are small and closed for good."""

_SHARD_NAME = re.compile(r"images-(\d{5,})\.tar")
_MEMBER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Member:
    """Where an image lies: `size` bytes from `offset` of the file `shard`. `name` is a key, never used as a path."""

    shard: str
    name: str
    offset: int
    size: int


def shard_paths(folder: Path) -> list[Path]:
    """The shards in `folder` in the order of their numbers."""
    numbered = [(int(match[1]), path) for path in folder.glob("images-*.tar") if (match := _match(path))]
    return [path for _, path in sorted(numbered)]


def list_members(folder: Path) -> list[Member]:
    """All images of all shards, in order; whatever else a tar file may hold is passed over.

    Raises:
        DiptychError: a shard is damaged or cut off.
    """
    return [member for path in shard_paths(folder) for member in _members_of(path)]


def read_member(folder: Path, member: Member) -> bytes:
    """The image's bytes.

    Raises:
        DiptychError: the shard is missing or shorter than it was when it was listed.
    """
    try:
        descriptor = os.open(folder / member.shard, os.O_RDONLY)
    except FileNotFoundError:
        raise DiptychError(f"{folder / member.shard} is missing; `dvc checkout` restores it.") from None
    try:
        content = os.pread(descriptor, member.size, member.offset)
    finally:
        os.close(descriptor)
    if len(content) != member.size:
        raise _damaged(folder / member.shard)
    return content


class ShardWriter:
    """Packs images into new shards of `folder`, after those that are there.

    Used as a context: the shards get their names when it ends, and vanish if it ends by an exception. The same
    additions make the same bytes. Shards that a killed process left half-written are removed at the start.
    """

    def __init__(self, folder: Path) -> None:
        self.shards: list[str] = []
        self.bytes = 0
        self._folder = folder
        self._tar: tarfile.TarFile | None = None
        self._members = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_temporary()
        numbers = [int(match[1]) for path in shard_paths(self._folder) if (match := _match(path))]
        self._next = max(numbers, default=-1) + 1
        return self

    def add(self, name: str, content: bytes) -> None:
        """Appends one image; a full shard is followed by a new one.

        Raises:
            DiptychError: `name` is more than a plain file name.
        """
        if not _MEMBER_NAME.fullmatch(name) or ".." in name:
            raise DiptychError(f"{name!r} cannot name an image in a shard: letters, digits and single dots only.")
        if self._tar is None or self._members == MAX_MEMBERS:
            self._start_shard()
        assert self._tar is not None
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._tar.addfile(header, BytesIO(content))
        self._members += 1
        self.bytes += len(content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_shard()
            if kind is None:
                self._publish()
        finally:
            self._remove_temporary()

    def _start_shard(self) -> None:
        self._close_shard()
        name = f"images-{self._next + len(self.shards):05d}.tar"
        self.shards.append(name)
        self._members = 0
        self._tar = tarfile.open(self._temporary(name), "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def _close_shard(self) -> None:
        if self._tar is not None:
            tar, self._tar = self._tar, None
            tar.close()

    def _publish(self) -> None:
        for name in self.shards:
            with self._temporary(name).open("rb") as file:
                os.fsync(file.fileno())
            self._temporary(name).replace(self._folder / name)

    def _temporary(self, name: str) -> Path:
        return self._folder / f".{name}.tmp"

    def _remove_temporary(self) -> None:
        for leftover in self._folder.glob(".images-*.tar.tmp"):
            leftover.unlink()


def _match(path: Path) -> re.Match[str] | None:
    return _SHARD_NAME.fullmatch(path.name)


def _members_of(path: Path) -> list[Member]:
    try:
        with tarfile.open(path, "r:") as tar:
            entries = tar.getmembers()
    except (tarfile.TarError, EOFError, ValueError):
        raise _damaged(path) from None
    # tarfile takes any end of file for the end of the archive; the two empty blocks tell whether it is.
    last = max((entry.offset_data + _padded(entry.size if entry.isreg() else 0) for entry in entries), default=0)
    with path.open("rb") as file:
        file.seek(last)
        if file.read(len(_END_OF_ARCHIVE)) != _END_OF_ARCHIVE:
            raise _damaged(path)
    return [Member(path.name, entry.name, entry.offset_data, entry.size) for entry in entries if entry.isreg()]


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _damaged(path: Path) -> DiptychError:
    return DiptychError(
        f"{path} is damaged or cut off. `dvc checkout --force data.dvc` restores it, or import the images again."
    )
