"""The folder of stored features: files in half precision, within a limit of bytes.

A file is an .npy file with its SHA-256 at the end. It appears under its name when it is complete, so several processes
may read and write the folder at the same time.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from diptych.data.inputs import Half
from diptych.errors import DiptychError
from diptych.files import DIGEST_BYTES, atomic_path, digested, is_whole

log = logging.getLogger(__name__)


class FeatureFiles:
    """A folder of features, each array in a file that is named by a key.

    Attributes:
        folder: shared by all runs; it may be deleted at any time.
        limit: largest size in bytes.
        used: size in bytes of each file that this run uses; these are never removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.used: dict[Path, int] = {}

    def path(self, key: str) -> Path:
        """Return the path of the file with this key."""
        return self.folder / f"{key}.npy"

    def release(self, paths: Collection[Path]) -> None:
        """Let files of this run be removed when others need room."""
        self.used = {path: size for path, size in self.used.items() if path not in paths}

    def fit(self, needed: Mapping[Path, int]) -> bool:
        """Return whether files of these sizes fit on the disk, and with the files in use within the limit."""
        missing = sum(size for path, size in needed.items() if not path.exists())
        return self.total(needed) <= self.limit and missing < self.free()

    def total(self, needed: Mapping[Path, int]) -> int:
        """Return the bytes of `needed` and of the files in use."""
        return sum((self.used | dict(needed)).values())

    def free(self) -> int:
        """Return the free bytes of the folder's disk."""
        return shutil.disk_usage(_existing(self.folder)).free

    def find(self, key: str, shape: tuple[int, ...]) -> Half | None:
        """Return the array with this key, mapped into memory; None if it is missing or, with a warning, damaged."""
        path = self.path(key)
        try:
            content = np.memmap(path, np.uint8, mode="r")
            # Only bytes with the right digest are parsed: numpy fails in many ways on others.
            if is_whole(content.data):
                features: Half = np.load(path, mmap_mode="r", allow_pickle=False)
                if features.dtype == np.float16 and features.shape == shape:
                    return features
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # it cannot be read, or is empty
            pass
        log.warning("%s is damaged and is computed anew.", path)
        return None

    def write(self, key: str, features: Half) -> None:
        """Write an array.

        Raises:
            DiptychError: the folder cannot be written, or the disk is full.
        """
        try:
            with atomic_path(self.path(key), shared=True) as temporary, digested(temporary) as file:
                np.save(file, features)
        except OSError as error:
            raise DiptychError(
                f"{self.folder} cannot be written: {error.strerror}. Where the disk is full, free space or lower "
                "train.features_gib; train.keep_features: never does without."
            ) from None

    def sweep(self) -> None:
        """Remove the temporary files of killed processes, whose ids are in the names."""
        for path in self.folder.glob(".*.npy.*.tmp"):
            try:
                os.kill(int(path.name.split(".")[-2]), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except (PermissionError, ValueError, OverflowError):  # another user's live process, or no process id
                pass

    def touch(self, paths: Collection[Path]) -> None:
        """Mark files as used now."""
        for path in paths:
            # Another run may have removed the file, or own it; what is mapped stays.
            with suppress(OSError):
                os.utime(path)

    def make_room(self) -> None:
        """Remove the least recently used files until the rest is within the limit; never a file that this run uses."""
        files = []
        for path in self.folder.glob("*.npy"):
            # Another process may be making room as well.
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        surplus = sum(size for _, size, _ in files) - self.limit
        for _, size, path in sorted(files):
            if surplus > 0 and path not in self.used:
                path.unlink(missing_ok=True)
                surplus -= size


def file_size(shape: tuple[int, ...]) -> int:
    """Return the bytes that the file of a float16 array takes, without the header."""
    return 2 * int(np.prod(shape, dtype=np.int64)) + DIGEST_BYTES


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
