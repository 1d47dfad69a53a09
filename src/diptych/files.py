"""Writing files so that a kill at any moment leaves the old content or the new, never half of it; and knowing whether
they still are what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

DIGEST_BYTES = 32
"""Behind the content of a file that `digested` wrote."""
SUMS = "SHA256SUMS"
"""Of the other files of a folder, as `sha256sum --check` reads it."""


@contextmanager
def atomic_path(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends without an exception.

    The block may create a file or a folder there. Leftovers of a killed process are removed first; on an exception
    nothing of the new content stays. A `shared` path may be written by several processes at once: the temporary name
    then has the process's id as its last part but one, and leftovers are for the caller to remove.
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
    """Writes `value` as indented JSON with a final newline, atomically; NaN and infinity are refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def digested(path: Path) -> Iterator[BinaryIO]:
    """Yields `path` to write to; the SHA-256 of what was written is added at the end."""
    with path.open("wb") as file:
        writing = _Digesting(file)
        yield writing  # type: ignore[misc]
        file.write(writing.sha256.digest())


def is_whole(content: memoryview) -> bool:
    """Whether `content`, of a file that `digested` wrote, is what was written."""
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == bytes(content[-DIGEST_BYTES:])


def file_sha256(path: Path) -> str:
    """Of its content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources_sha256(package: Path, folders: Sequence[str]) -> str:
    """Of the Python modules that lie in these `folders` of the package, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (package / folder).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_sums(folder: Path) -> None:
    """Puts the SHA-256 of each file of `folder`, which has no folders in it, beside them."""
    (folder / SUMS).write_text(
        "".join(f"{digest}  {name}\n" for name, digest in _digests(folder).items()), encoding="utf-8"
    )


def sums_hold(folder: Path) -> bool:
    """Whether `folder` holds the files that `write_sums` saw, unchanged, and no others."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)} == _digests(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return {path.name: file_sha256(path) for path in files}


class _Digesting:
    """A file to write to, which knows the SHA-256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """As files do."""
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """As files do."""
        self.file.flush()


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _swap_folder(new: Path, path: Path) -> None:
    """Folders cannot replace each other in one call: the old one steps aside first, and is removed last."""
    old = path.with_name(f".{path.name}.old")
    remove(old)
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        path.replace(old)
    new.replace(path)
    remove(old)


def _flush(path: Path, deep: bool = True) -> None:
    """Has the kernel write `path` (and, for a folder, what is in it) to the disk."""
    if deep and path.is_dir():
        for child in path.rglob("*"):
            _flush(child, deep=False)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
