"""Atomic writing of files, and checks that they are still as written.

A kill at any moment leaves the old content or the new, never half of it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

DIGEST_BYTES = 32
"""Length of the SHA-256 at the end of a file that `digested` wrote."""
SUMS = "SHA256SUMS"
"""Name of the file with the SHA-256 of all others in its folder, as `sha256sum --check` reads it."""


@contextmanager
def atomic_path(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` if the block raises no exception.

    The block may create a file or a folder there. Leftovers of a killed process are removed first. After an exception
    nothing of the new content remains.

    Args:
        path: file or folder to replace.
        shared: whether several processes may write the path at once. The temporary name then ends in the process's id
            and `.tmp`, and the caller removes leftovers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    remove(temporary)
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir():
            _swap_folder(temporary, path)
        else:
            temporary.replace(path)
        _flush(path.parent, deep=False)
    finally:
        remove(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with a final newline.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with a header; a missing value is None."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def digested(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing, and append the SHA-256 of the content when the block ends."""
    with path.open("wb") as file:
        digesting = _DigestingFile(file)
        yield digesting  # type: ignore[misc]
        file.write(digesting.sha256.digest())


def is_whole(content: memoryview) -> bool:
    """Return whether the content of a file is as `digested` wrote it."""
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == bytes(content[-DIGEST_BYTES:])


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_md5(path: Path) -> str:
    """Return the MD5 of the file's content, in hexadecimal, by which DVC names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def sources_sha256(package: Path, names: Sequence[str]) -> str:
    """Return the SHA-256 of the modules and subpackages `names` of the package, in hexadecimal."""
    digest = hashlib.sha256()
    paths = [package / name for name in names]
    for module in sorted(file for path in paths for file in (path.glob("*.py") if path.is_dir() else [path])):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file of `folder`, which contains no folders, into its file `SUMS`."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items())
    (folder / SUMS).write_text(lines, encoding="utf-8")


def sums_hold(folder: Path) -> bool:
    """Return whether `folder` holds the files that `write_sums` saw, unchanged, and no others."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)} == _digests(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return {path.name: file_sha256(path) for path in files}


class _DigestingFile:
    """Writable file that computes the SHA-256 of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def remove_older(paths: Iterable[Path], days: float) -> None:
    """Remove files and folders that were modified more than so many days ago."""
    for path in paths:
        with suppress(FileNotFoundError):  # another process has removed it
            if path.stat().st_mtime < time.time() - 86_400 * days:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _swap_folder(new: Path, path: Path) -> None:
    """Replace the folder `path` by `new`.

    No single call replaces a folder, so the old one is renamed first and removed last.
    """
    old = path.with_name(f".{path.name}.old")
    remove(old)
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        path.replace(old)
    new.replace(path)
    remove(old)


def _flush(path: Path, deep: bool = True) -> None:
    """Flush the file, or the folder and its content, to the disk."""
    if deep and path.is_dir():
        for child in path.rglob("*"):
            _flush(child, deep=False)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
