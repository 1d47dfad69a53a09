"""A store of `diptych.data.stored` in memory, which notes what is asked of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import md5
from pathlib import Path

import pytest

from diptych.data import stored
from diptych.data.stored import Range, Sent, StoredFile
from diptych.errors import DiptychError


class MemoryStore:
    """What `take` took from the disk, found again by its path."""

    name = "the store"

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.contents: dict[str, bytes] = {}
        self.keys: dict[Path, str] = {}
        self.calls: list[list[Range]] = []

    @property
    def bytes_read(self) -> int:
        return sum(part.stop - part.start for call in self.calls for part in call)

    def take(self, *paths: Path) -> None:
        """Moves files from the disk into the store."""
        for path in paths:
            content = path.read_bytes()
            self.keys[path.absolute()] = md5(content).hexdigest()
            self.contents[self.keys[path.absolute()]] = content
            path.unlink()

    def open(self, path: Path) -> MemoryStore:
        return self

    def find(self, path: Path) -> StoredFile | None:
        return StoredFile(path, self.keys[path], self) if path in self.keys else None

    def files(self, folder: Path) -> list[StoredFile]:
        return [StoredFile(path, key, self) for path, key in self.keys.items() if path.parent == folder]

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        self.calls.append(list(ranges))
        if missing := [part for part in ranges if part.file.key not in self.contents]:
            raise DiptychError(f"{missing[0].file.path} is nowhere")
        return [self.contents[part.file.key][part.start : part.stop] for part in ranges]

    def lacking(self, keys: Collection[str]) -> set[str]:
        return set(keys) - self.contents.keys()

    def key_of(self, path: Path) -> str:
        return md5(path.read_bytes()).hexdigest()

    def send(self, path: Path) -> str:
        key = self.key_of(path)
        self.contents[key] = path.read_bytes()
        return key

    def send_folder(self, folder: Path, files: Mapping[str, Sent]) -> None:
        self.keys |= {folder / name: file.key for name, file in files.items()}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes this the only store that files are looked for in."""
        monkeypatch.setattr(stored, "_openers", lambda: [self.open])
