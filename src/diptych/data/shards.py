"""Shards of a dataset: uncompressed tar files of at most a thousand images, written once and never changed."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from diptych.data.stored import (
    DAYS_OF_LEFTOVERS,
    Range,
    StoredFile,
    cut_off,
    find_stored,
    open_stored,
    read_ranges,
    stored_files,
)
from diptych.errors import DiptychError
from diptych.files import DIGEST_BYTES, atomic_path, digested, is_whole, remove_older

if TYPE_CHECKING:
    import pandas as pd

MAX_MEMBERS = 1000
"""Maximum number of images in a shard. A changed shard would be stored and prepared again as a whole, so shards are
small and never change.
"""

_SHARD_NAME = re.compile(r"images-(\d{5,})\.tar")
_MEMBER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_REQUESTS = 64
"""Number of requests to a store at once."""
_HEADERS_AT_ONCE = 2**15
"""Number of bytes that are requested of a shard at a time to find its images: a photo or some small pictures."""
_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class Member:
    """Position of an image: `size` bytes from `offset` of the file `shard`. `name` is a key, never used as a path."""

    shard: str
    name: str
    offset: int
    size: int


def shard_paths(folder: Path) -> list[Path]:
    """Return where the shards in `folder` are or, without it, belong, in the order of their numbers.

    Raises:
        DiptychError: there is no `folder`, and the store that has it cannot be read.
    """
    paths = folder.glob("images-*.tar") if folder.exists() else (file.path for file in stored_files(folder))
    return [path for _, path in _numbered(paths)]


def list_members(folder: Path) -> list[Member]:
    """Return the images of all shards, in order; other members of a tar file are ignored.

    Where there is no `folder` on this disk, they are those of the store that has it.

    Raises:
        DiptychError: a shard is damaged or cut off, or the store cannot be read.
    """
    if folder.exists():
        return list(chain.from_iterable(map(_members_of, shard_paths(folder))))
    files = {file.path: file for file in stored_files(folder)}
    with ThreadPoolExecutor(_REQUESTS) as pool:  # each waits for its requests
        lists = pool.map(_members_of_stored, [files[path] for _, path in _numbered(files)])
        return list(chain.from_iterable(lists))


def members_of(images: pd.DataFrame) -> list[Member]:
    """Return the positions in the shards of the images in these rows of the manifest."""
    columns = zip(images["shard"], images["file_name"], images["offset"], images["bytes"], strict=True)
    return [Member(shard, name, int(offset), int(size)) for shard, name, offset, size in columns]


def read_member(folder: Path, member: Member) -> bytes:
    """Return the bytes of the image, from the store that has the shard where it is not on this disk.

    Raises:
        DiptychError: the shard is missing, unreadable, or shorter than it was when it was listed.
    """
    path = folder / member.shard
    try:
        content = read_range(path, member.offset, member.size)
    except FileNotFoundError:
        if stored := find_stored(path):
            return read_ranges([_range(stored, member)])[0]
        raise DiptychError(f"{path} is missing; `dvc checkout` restores it.") from None
    except OSError as error:
        raise DiptychError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) != member.size:
        raise _damaged(folder / member.shard)
    return content


def read_members(folder: Path, members: Sequence[Member]) -> Iterator[bytes]:
    """Yield the bytes of the images; those of shards that only a store has are requested many at once.

    Raises:
        DiptychError: as `read_member`, or the store that has a shard cannot be read.
    """
    for start in range(0, len(members), _REQUESTS):
        part = members[start : start + _REQUESTS]
        missing = {shard: path for shard in {member.shard for member in part} if not (path := folder / shard).exists()}
        stored = {shard: file for shard, path in missing.items() if (file := find_stored(path))}
        elsewhere = [member for member in part if member.shard in stored]
        contents = iter(read_ranges([_range(stored[member.shard], member) for member in elsewhere]))
        for member in part:
            yield next(contents) if member.shard in stored else read_member(folder, member)


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset`, or fewer where it ends before."""
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


class ShardWriter:
    """Context manager that packs images into new shards of `folder`, numbered after the existing and `other` ones.

    The shards get their names when the context ends, and are removed if an exception ends it. The same images give the
    same bytes. Incomplete shards of a killed process are removed at the start.

    Attributes:
        shards: file names of the new shards.
        bytes: number of bytes of the images in them.
    """

    def __init__(self, folder: Path, other: Iterable[Path] = ()) -> None:
        self.shards: list[str] = []
        self.bytes = 0
        self._folder, self._other = folder, other
        self._tar: tarfile.TarFile | None = None
        self._members = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_temporary()
        existing = _numbered([*self._folder.glob("images-*.tar"), *self._other])
        self._next = max((number for number, _ in existing), default=-1) + 1
        return self

    def add(self, name: str, content: bytes) -> None:
        """Append an image; begin a new shard when the last one is full.

        Raises:
            DiptychError: `name` is not a plain file name.
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


def _range(stored: StoredFile, member: Member) -> Range:
    return Range(stored, member.offset, member.offset + member.size)


def _numbered(paths: Iterable[Path]) -> list[tuple[int, Path]]:
    return sorted((int(match[1]), path) for path in paths if (match := _SHARD_NAME.fullmatch(path.name)))


def _members_of(path: Path) -> list[Member]:
    with path.open("rb") as file:
        members = _members_in(file, path.name)
    if members is None:
        raise _damaged(path)
    return members


def _members_of_stored(stored: StoredFile) -> list[Member]:
    """Return the images of a shard that only a store has; the list is kept, as a shard never changes."""
    kept = stored.store.cache / "members" / stored.key
    with suppress(OSError):
        content = memoryview(kept.read_bytes())
        if is_whole(content):
            return [Member(stored.path.name, *entry) for entry in json.loads(bytes(content[:-DIGEST_BYTES]))]
    with open_stored(stored, _HEADERS_AT_ONCE) as file:
        members = _members_in(file, stored.path.name)
    if members is None:
        raise cut_off(stored)
    remove_older(kept.parent.glob(".*.tmp"), DAYS_OF_LEFTOVERS)
    # Without room for it the list is made each time.
    with suppress(OSError), atomic_path(kept, shared=True) as temporary, digested(temporary) as output:
        output.write(json.dumps([[member.name, member.offset, member.size] for member in members]).encode())
    return members


def _members_in(file: BinaryIO, shard: str) -> list[Member] | None:
    """Return the images of an open shard; None where it is damaged or cut off."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            entries = tar.getmembers()
    except (tarfile.TarError, EOFError, ValueError):
        return None
    if not is_complete(file, entries):
        return None
    return [Member(shard, entry.name, entry.offset_data, entry.size) for entry in entries if entry.isreg()]


def is_complete(file: BinaryIO, entries: Iterable[tarfile.TarInfo]) -> bool:
    """Return whether a tar file with these members ends as an archive does.

    tarfile accepts any end of the file as the end of the archive; only a complete archive ends with two empty blocks.
    """
    file.seek(_end(entries))
    return file.read(len(_END_OF_ARCHIVE)) == _END_OF_ARCHIVE


def has_more(file: BinaryIO, entries: Iterable[tarfile.TarInfo]) -> bool:
    """Return whether a tar file with these members has anything but zeros behind its end."""
    file.seek(_end(entries))
    return any(block.strip(b"\0") for block in iter(lambda: file.read(2**20), b""))


def _end(entries: Iterable[tarfile.TarInfo]) -> int:
    """Return the offset behind the last member."""
    without_content = (
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
    )
    sizes = ((entry, 0 if entry.type in without_content else entry.size) for entry in entries)
    return max((entry.offset_data + _padded(size) for entry, size in sizes), default=0)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _damaged(path: Path) -> DiptychError:
    return DiptychError(
        f"{path} is damaged or cut off. `dvc checkout --force data.dvc` restores it, or import the images again."
    )
