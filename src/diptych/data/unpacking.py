"""Unpacking of zip archives that nobody vouches for: no file leaves its folder or is larger than expected."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from diptych.data.downloading import part_of
from diptych.errors import DiptychError, first_line, some
from diptych.files import remove
from diptych.progress import progress


def unpack(archive: Path, member: str, target: Path, limit: int) -> None:
    """Unpack the file or folder `member` under a temporary name, and rename it to `target` when it is complete.

    What an interrupted call has unpacked is kept, and only the rest is unpacked.

    Raises:
        DiptychError: the archive is damaged, has links or names that lead out of a folder, or has no such member or
            one of more than `limit` bytes.
    """
    part = part_of(target)
    try:
        _extract(archive, member, part, limit)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, DiptychError) as error:
        raise DiptychError(
            f"{archive} cannot be unpacked: {first_line(error)}. Remove it, and run the command again."
        ) from None
    os.sync()  # One call for all of up to a hundred thousand files.
    (part / member).replace(target)
    remove(part)


def _extract(archive: Path, member: str, part: Path, limit: int) -> None:
    with zipfile.ZipFile(archive) as content:
        for entry in progress(_entries(content, member, limit), f"unpacking {archive.name}", unit="files"):
            if not _is_unpacked(part / entry.filename, entry):
                content.extract(entry, part)


def _entries(content: zipfile.ZipFile, member: str, limit: int) -> list[zipfile.ZipInfo]:
    """Return the files of `member`, after all names in the archive have been checked."""
    if unsafe := [ascii(entry.filename) for entry in content.infolist() if _leads_out(entry)]:
        raise DiptychError(f"it has links, or names that lead out of its folder: {some(unsafe)}")
    files = [entry for entry in content.infolist() if not entry.is_dir()]
    entries = [entry for entry in files if entry.filename == member or entry.filename.startswith(f"{member}/")]
    if not entries:
        raise DiptychError(f"it has no {member}")
    # zipfile reads no more of a file than the size that is checked here.
    if (size := sum(entry.file_size for entry in entries)) > limit:
        raise DiptychError(f"{member} has {size:,} bytes, more than the expected {limit:,}")
    return entries


def _leads_out(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    return path.is_absolute() or ".." in path.parts or stat.S_ISLNK(entry.external_attr >> 16)


def _is_unpacked(path: Path, entry: zipfile.ZipInfo) -> bool:
    """Return whether the file is there, whole."""
    return path.is_file() and path.stat().st_size == entry.file_size and zlib.crc32(path.read_bytes()) == entry.CRC
