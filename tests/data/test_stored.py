"""Files that are not on this disk: who has them, and what is read of them."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from memory_store import MemoryStore

from diptych.data import stored
from diptych.data.stored import STORES, Range, find_stored, read_ranges
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


def test_nothing_is_asked_for_nothing() -> None:
    assert read_ranges([]) == []


def test_stores_are_the_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"][STORES].items()
    monkeypatch.setattr(stored, "entry_points", lambda group: [EntryPoint(name, value, group)])
    assert stored._finders.__wrapped__() == [dvc_remote.find]  # noqa: SLF001
