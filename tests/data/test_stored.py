"""Files that are not on this disk: who has them, and what is read of them."""

from __future__ import annotations

import os
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from memory_store import MemoryStore

from diptych.data import stored
from diptych.data.stored import (
    STORES,
    Range,
    find_stored,
    local_path,
    lost_files,
    open_stored,
    read_ranges,
    stored_files,
)
from diptych.errors import DiptychError
from diptych.project import dvc_remote


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    made = MemoryStore(tmp_path / "cache")
    made.use(monkeypatch)
    return made


def test_a_file_is_found_by_its_absolute_path(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    store.take(tmp_path / "a.bin")
    monkeypatch.chdir(tmp_path)

    file = find_stored(Path("a.bin"))

    assert file is not None
    assert read_ranges([Range(file, 2, 5), Range(file, 0, 1)]) == [b"234", b"0"]
    assert len(store.calls) == 1


def test_a_file_of_no_store_is_found_nowhere(store: MemoryStore, tmp_path: Path) -> None:
    assert find_stored(tmp_path / "b.bin") is None


def test_a_file_that_ends_too_early_is_named_with_what_to_do(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    store.take(tmp_path / "a.bin")
    file = find_stored(tmp_path / "a.bin")
    assert file is not None
    with pytest.raises(DiptychError, match=rf"a\.bin is damaged or cut off in the store, where it is {file.key}.*push"):
        read_ranges([Range(file, 2, 5), Range(file, 5, 11)])


def test_the_files_of_a_folder_are_those_that_the_store_has(store: MemoryStore, tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_text(name)
    store.take(tmp_path / "a.bin", tmp_path / "b.bin")
    assert [file.path.name for file in stored_files(tmp_path)] == ["a.bin", "b.bin"]
    assert stored_files(tmp_path / "other") == []


def test_what_a_store_has_lost_is_told(store: MemoryStore, tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_text(name)
    store.take(tmp_path / "a.bin", tmp_path / "b.bin")
    assert lost_files(tmp_path) == []
    del store.contents[store.keys[tmp_path / "b.bin"]]
    assert [file.path.name for file in lost_files(tmp_path)] == ["b.bin"]


def test_a_stored_file_reads_as_one_on_the_disk(store: MemoryStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "a.bin").write_bytes(content)
    store.take(tmp_path / "a.bin")
    stored = find_stored(tmp_path / "a.bin")
    assert stored is not None
    for at_once in (16, 4096, 10**6):
        with open_stored(stored, at_once) as file:
            assert file.read() == content
            file.seek(10_000)
            assert (file.read(100), file.read(300), file.read(9)) == (content[10_000:10_100], content[10_100:], b"")
            file.seek(-50, 1)
            assert file.read() == content[-50:]
            file.seek(20_000)
            assert file.read(5) == b""
            with pytest.raises(OSError, match="does not tell where a file ends"):
                file.seek(0, 2)


def test_a_copy_in_the_cache_is_made_once(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    assert local_path(path) == path
    store.take(path)

    copy = local_path(path)

    assert (copy.name, copy.read_bytes()) == ("a.bin", b"0123456789")
    requests = len(store.calls)
    assert local_path(path) == copy
    assert len(store.calls) == requests
    assert local_path(tmp_path / "b.bin") == tmp_path / "b.bin"


def test_copies_and_leftovers_that_nobody_uses_go_in_time(store: MemoryStore, tmp_path: Path) -> None:
    path, copies = tmp_path / "a.bin", []
    for version in range(3):
        path.write_text(f"version {version}")
        store.take(path)
        copies.append(local_path(path))
    now = time.time()
    leftovers = [copies[2].with_name(f".a.bin.{number}.tmp") for number in range(2)]
    for age, leftover in zip((0.5, 1.5), leftovers, strict=True):
        leftover.touch()
        os.utime(leftover, (now, now - 86_400 * age))
    for age, copy in zip((8, 6, 0), copies, strict=True):
        os.utime(copy.parent, (now, now - 86_400 * age))
    path.write_text("another version")
    store.take(path)
    local_path(path)
    assert [copy.exists() for copy in copies] == [False, True, True]
    assert [leftover.exists() for leftover in leftovers] == [True, False]


def test_a_copy_that_is_not_what_was_stored_is_refused_and_not_kept(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    store.take(path)
    [key] = store.contents
    store.contents[key] = b"01234"
    with pytest.raises(DiptychError, match=rf"a\.bin is damaged or cut off in the store, where it is {key}"):
        local_path(path)
    store.contents[key] = b"0123456789"
    assert local_path(path).read_bytes() == b"0123456789"


def test_a_cache_that_cannot_be_written_is_named(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    store.take(path)
    store.cache.write_text("a file")
    with pytest.raises(DiptychError, match=r"cache/files/.*/a\.bin cannot be written: "):
        local_path(path)


def test_a_failure_leaves_no_part_of_a_copy(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    store.take(path)
    contents, store.contents = store.contents, {}
    with pytest.raises(DiptychError, match=r"a\.bin is nowhere"):
        local_path(path)
    store.contents = contents
    assert local_path(path).read_bytes() == b"0123456789"


def test_nothing_is_asked_for_nothing() -> None:
    assert read_ranges([]) == []


def test_stores_are_the_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"][STORES].items()
    monkeypatch.setattr(stored, "entry_points", lambda group: [EntryPoint(name, value, group)])
    assert stored._openers.__wrapped__() == [dvc_remote.open_remote]  # noqa: SLF001
