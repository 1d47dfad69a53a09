"""Pixel files that are not on this disk: rows are fetched when they are needed, and kept in a bounded cache.

A cache file belongs to one pixel file and is named by its hash. It has the same bytes, with holes for the rows that
were not fetched yet, and behind them a mark for each row: the CRC-32 of the row, or 0 where it is not there. A mark is
written after its row and compared with it, so a row that a killed process or a power cut left half-written is fetched
again. Any number of processes read and write the same files; each holds a shared lock on those that it uses.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.data.cache_folder import cache_folder
from diptych.data.stored import Range, StoredFile, cut_off, read_ranges
from diptych.errors import DiptychError

_HEADER = 256
"""Number of bytes from the start of a .npy file that have its header; NumPy writes 128 for an array of images."""
_MARK = np.dtype(np.uint32)
_BLOCK = 4096
"""Number of bytes of a block of the disk; what is written begins and ends within one."""
_LONGEST = 2**23
"""Number of bytes of a request at most; neighbouring rows share one."""

_log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """Rows (n,) of a file, and the positions (n,) in a batch that they fill."""

    file: StoredPixels
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]


class StoredPixels:
    """A pixel file in a store, of images of shape (S, S, 3) uint8; its length is known once `fill` has opened it."""

    def __init__(self, stored: StoredFile, size: int) -> None:
        self.stored = stored
        self.size = size
        self.count = 0
        self._start = 0
        self._row_bytes = size * size * 3
        self._descriptor = -1
        self._verified = np.zeros(0, np.bool_)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def is_open(self) -> bool:
        """Whether the number of its images is known."""
        return self._start > 0

    def open_with(self, header: bytes) -> None:
        """Take the number of images from the start of the .npy file, and open the cache file, if there can be one.

        Raises:
            DiptychError: the file holds no images of this size.
        """
        shape, start = _parse(header, self.stored)
        if shape[1:] != (self.size, self.size, 3):
            raise DiptychError(f"{self.stored.path} in {self.stored.store.name} holds {shape}, not images.")
        self.count = shape[0]
        self._verified = np.zeros(self.count, np.bool_)
        try:
            self._descriptor = _open_shared(self.stored, header, self._marks_at(start) + self.count * _MARK.itemsize)
        except OSError as error:
            _warn_once(str(self.stored.store.cache), error.strerror or str(error))
        self._start = start

    def cached(
        self, rows: NDArray[np.int64], batch: NDArray[np.uint8], positions: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Copy the `rows` (n,) that are in the cache to their positions in `batch`; return which they were, (n,)."""
        found = np.zeros(len(rows), np.bool_)
        if self._descriptor < 0:
            return found
        marks = self._read_marks()
        for index in np.flatnonzero(marks[rows]):
            row = int(rows[index])
            target = memoryview(batch[positions[index]].reshape(-1))
            length = os.preadv(self._descriptor, [target], self._offset(row))
            if length == len(target) and (self._verified[row] or _mark(target) == marks[row]):
                found[index] = self._verified[row] = True
        return found

    def ranges(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Range]]:
        """Yield the requests for distinct ascending rows: those of each one, and its range of bytes."""
        most = max(1, _LONGEST // self._row_bytes)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
        for begin, end in pairwise(cuts):
            for first in range(begin, end, most):
                part = rows[first : min(first + most, end)]
                yield part, Range(self.stored, self._offset(int(part[0])), self._offset(int(part[-1]) + 1))

    def keep(self, row: int, content: memoryview) -> None:
        """Write a row into the cache, and then its mark."""
        if self._descriptor >= 0:
            os.pwrite(self._descriptor, content, self._offset(row))
            mark = np.array([_mark(content)], _MARK).tobytes()
            os.pwrite(self._descriptor, mark, self._marks_at(self._start) + row * _MARK.itemsize)
            self._verified[row] = True

    def _read_marks(self) -> NDArray[np.uint32]:
        content = os.pread(self._descriptor, self.count * _MARK.itemsize, self._marks_at(self._start))
        return np.frombuffer(content.ljust(self.count * _MARK.itemsize, b"\0"), _MARK)

    def _offset(self, row: int) -> int:
        return self._start + row * self._row_bytes

    def _marks_at(self, start: int) -> int:
        return start + self.count * self._row_bytes


def fill(batch: NDArray[np.uint8], wanted: Sequence[Wanted]) -> None:
    """Fill positions of `batch` (B, S, S, 3) with rows of files in one store, from the cache or by parallel requests.

    Raises:
        DiptychError: the store cannot be read, lacks a file, or has one that is damaged or too short.
    """
    _open_all([one.file for one in wanted if not one.file.is_open])
    requests = [request for one in wanted for request in _missing(batch, one)]
    contents = read_ranges([part for _, _, part in requests])
    for (one, rows, _), content in zip(requests, contents, strict=True):
        images = np.frombuffer(content, np.uint8).reshape(len(rows), *batch.shape[1:])
        chosen = np.flatnonzero(np.isin(one.rows, rows))
        batch[one.positions[chosen]] = images[one.rows[chosen] - rows[0]]
    if not requests:
        return
    size = sum(len(content) + _BLOCK for content in contents)
    with cache_folder(wanted[0].file.stored.store.cache).room(size) as has_room:
        for (one, rows, _), content in zip(requests, contents, strict=True):
            if has_room:
                _keep(one.file, rows, memoryview(content))


def _missing(batch: NDArray[np.uint8], one: Wanted) -> Iterator[tuple[Wanted, NDArray[np.int64], Range]]:
    """Copy what the cache has, and yield the requests for the rest."""
    if len(one.rows) and one.rows.max() >= one.file.count:
        raise cut_off(one.file.stored)
    found = one.file.cached(one.rows, batch, one.positions)
    for rows, part in one.file.ranges(np.unique(one.rows[~found])):
        yield one, rows, part


def _keep(file: StoredPixels, rows: NDArray[np.int64], content: memoryview) -> None:
    size = len(content) // len(rows)
    try:
        for index, row in enumerate(rows.tolist()):
            file.keep(row, content[index * size : (index + 1) * size])
    except OSError as error:
        _warn_once(str(file.stored.store.cache), error.strerror or str(error))


_opening = threading.Lock()


def _open_all(files: list[StoredPixels]) -> None:
    """Open files, whose headers come from their cache files or by parallel requests."""
    if not files:
        return
    with _opening:
        headers = {file.stored.key: _cached_header(file.stored) for file in files}
        unknown = [file.stored for file in files if not headers[file.stored.key]]
        # A file of a few small images may be shorter.
        fetched = unknown[0].store.read([Range(stored, 0, _HEADER) for stored in unknown]) if unknown else []
        headers |= {stored.key: content for stored, content in zip(unknown, fetched, strict=True)}
        for file in files:
            if not file.is_open:  # by another thread, meanwhile
                file.open_with(headers[file.stored.key])


def _cached_header(stored: StoredFile) -> bytes:
    try:
        with (stored.store.cache / stored.key).open("rb") as file:
            header = file.read(_HEADER)
        _parse(header, stored)
    except (OSError, DiptychError):  # none, or one that a power cut has emptied
        return b""
    return header


def _parse(header: bytes, stored: StoredFile) -> tuple[tuple[int, ...], int]:
    """Return the shape of the array in a .npy file of bytes, and the offset of its first element."""
    content = BytesIO(header)
    try:
        if np.lib.format.read_magic(content) == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(content)
            if dtype == np.uint8 and not fortran_order and len(shape) == 4:
                return shape, content.tell()
    except ValueError:
        pass
    raise cut_off(stored)


def _open_shared(stored: StoredFile, header: bytes, size: int) -> int:
    """Return a descriptor, with a shared lock, of the file's cache file, which is made where there is none."""
    path = stored.store.cache / stored.key
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        if not path.exists():
            _create(path, header, size)
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            facts = os.fstat(descriptor)
            if facts.st_nlink and facts.st_size == size:
                os.utime(descriptor)
                return descriptor
            # Removed before it was locked, or of a file system that lost its end.
            os.close(descriptor)
            if facts.st_nlink:
                path.unlink(missing_ok=True)


def _create(path: Path, header: bytes, size: int) -> None:
    """Make an empty cache file; nobody sees it before it has its header and its size."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            file.truncate(size)
        # Unlike a rename, a link does not replace the file that another process has made meanwhile.
        with suppress(FileExistsError, FileNotFoundError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _mark(content: memoryview) -> int:
    """Return the CRC-32 of a row, which is never 0 here."""
    return zlib.crc32(content) or 1


@lru_cache(maxsize=8)
def _warn_once(folder: str, reason: str) -> None:
    _log.warning("%s cannot keep what is fetched (%s), so it is fetched each time.", folder, reason)
