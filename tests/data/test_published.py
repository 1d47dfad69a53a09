"""Published datasets: what is there is not fetched again, and the space on the disk is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock
from web_files import Server, archive_at, serving, zipped

from diptych.data import downloading
from diptych.data.downloading import part_of
from diptych.data.published import PUBLISHED, Archive, PublishedDataset, fetch, free_bytes, needed_bytes
from diptych.errors import DiptychError


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    """A server for each of two archives."""
    monkeypatch.setattr(downloading, "RETRIES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:
        files = {"splits.zip": {"splits.json": b"{}"}, "train.zip": {"train/1.jpg": b"one", "train/2.jpg": b"two"}}
        yield [stack.enter_context(serving(zipped(content), f"/{name}")) for name, content in files.items()]


@pytest.fixture
def dataset(servers: list[Server]) -> PublishedDataset:
    archives = archive_at(servers[0], "splits.json"), archive_at(servers[1], "train")
    return PublishedDataset("pairs", archives, "free", "")


def test_archives_are_unpacked_and_removed_and_then_nothing_is_missing(
    dataset: PublishedDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    assert dataset.missing(folder) == list(dataset.archives)
    fetch(dataset.archives, folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files - {".lock"} == {"splits.json", "train/1.jpg", "train/2.jpg"}
    assert dataset.missing(folder) == []


def test_what_is_there_is_not_fetched_again(dataset: PublishedDataset, servers: list[Server], tmp_path: Path) -> None:
    servers[1].status = 404
    with pytest.raises(DiptychError, match="404"):
        fetch(dataset.missing(tmp_path), tmp_path)
    servers[1].status = 0
    assert dataset.missing(tmp_path) == [dataset.archives[1]]
    fetch(dataset.missing(tmp_path), tmp_path)
    assert [len(server.asked) for server in servers] == [1, 2]


def test_what_another_process_has_fetched_meanwhile_is_not_fetched_again(
    dataset: PublishedDataset, servers: list[Server], tmp_path: Path
) -> None:
    for _ in range(2):
        fetch(dataset.archives, tmp_path)
    assert [len(server.asked) for server in servers] == [1, 1]


def test_an_empty_folder_is_not_there_and_a_link_to_nothing_is_an_error(
    dataset: PublishedDataset, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    assert dataset.missing(tmp_path) == list(dataset.archives)
    fetch(dataset.archives, tmp_path)
    assert (tmp_path / "train/1.jpg").read_bytes() == b"one"
    (tmp_path / "splits.json").unlink()
    (tmp_path / "splits.json").symlink_to("/nowhere/splits.json")
    with pytest.raises(DiptychError, match=r"links to /nowhere/splits\.json"):
        dataset.missing(tmp_path)


def test_an_archive_that_is_there_is_verified_and_unpacked(
    dataset: PublishedDataset, servers: list[Server], tmp_path: Path
) -> None:
    (tmp_path / "train.zip").write_bytes(servers[1].content)
    fetch(dataset.archives[1:], tmp_path)
    assert (tmp_path / "train" / "2.jpg").read_bytes() == b"two"
    assert servers[1].asked == []


@pytest.mark.parametrize("change", [b"", b"x"])
def test_an_archive_of_somebody_else_is_refused_and_left_alone(
    dataset: PublishedDataset, servers: list[Server], tmp_path: Path, change: bytes
) -> None:
    path = tmp_path / "train.zip"
    path.write_bytes(change + servers[1].content[1:] + change)
    with pytest.raises(DiptychError, match=r"train.zip is not the archive of Somebody. Remove it"):
        fetch(dataset.archives[1:], tmp_path)
    assert path.exists()


def test_a_second_process_is_refused(dataset: PublishedDataset, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(DiptychError, match="Another process downloads into"):
        fetch(dataset.archives, tmp_path)


def test_the_needed_space_is_the_most_that_is_used_at_once(tmp_path: Path) -> None:
    small, large = Archive("http://a/b", "", 10, "", "c", 20), Archive("http://a/d", "", 1000, "", "e", 1100)
    assert needed_bytes([small, large], tmp_path) == 20 + 1000 + 1100
    assert needed_bytes([large, small], tmp_path) == 1000 + 1100
    assert needed_bytes([], tmp_path) == 0


def test_what_is_there_already_needs_no_space(tmp_path: Path) -> None:
    archive = Archive("http://a/b", "", 1000, "", "c", 1100)
    part_of(tmp_path / "b").write_bytes(bytes(600))
    part_of(tmp_path / "c").mkdir()
    (part_of(tmp_path / "c") / "file").write_bytes(bytes(50))
    assert needed_bytes([archive], tmp_path) == 400 + 1050
    part_of(tmp_path / "b").rename(tmp_path / "b")
    assert needed_bytes([archive], tmp_path) == 400 + 1050


def test_the_free_space_of_a_folder_that_is_not_there_is_that_of_its_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there") > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_dataset_states_what_its_users_need_to_know(name: str) -> None:
    dataset = PUBLISHED[name]
    assert "https://" in dataset.licence
    assert "diptych data import --karpathy {folder}/dataset_" in dataset.next_steps
    assert all(archive.url.startswith("https://") and len(archive.sha256) == 64 for archive in dataset.archives)
