"""Images that are prepared into a store: the same bytes as on the disk, and none twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from memory_store import MemoryStore
from preparation import SETTINGS, Project

from diptych.config import Preprocess
from diptych.data import prepared_shards, sending, shards
from diptych.data.sending import send_images
from diptych.data.stored import stored_files
from diptych.errors import DiptychError
from diptych.files import write_json


class Sender:
    """Calls of `send_images` for the images of a project, which only the store has."""

    def __init__(self, project: Project, store: MemoryStore) -> None:
        self.project, self.store = project, store
        self.manifest = project.manifest
        self.place, self.record = project.root / "prepared", project.root / "sent.txt"
        self.take_data()

    def take_data(self) -> None:
        data = self.project.root / "data"
        (data / "captions.json").write_text("captions")
        self.store.take(*data.iterdir())
        data.rmdir()

    def send(self, manifest: pd.DataFrame | None = None, settings: Preprocess = SETTINGS) -> int:
        """Returns how many shards the store had already; leaves the tables in the store, as `dvc push` does."""
        output = self.place.with_name("output")
        output.mkdir()
        manifest = self.manifest if manifest is None else manifest
        try:
            reused = send_images(
                self.project.root / "data",
                manifest,
                output,
                prepared=self.place,
                record=self.record,
                settings=settings,
                workers=1,
            )
            write_json(output / "settings.json", {"decoding": prepared_shards.decoding(settings)})
            output.rename(self.place)
            self.store.take(*self.place.iterdir())
            self.place.rmdir()
        finally:
            for path in output.glob("*"):
                path.unlink()
            if output.exists():
                output.rmdir()
        return reused

    def sent(self) -> dict[str, bytes]:
        return {file.path.name: self.store.contents[file.key] for file in stored_files(self.place / "images")}


@pytest.fixture
def sender(tmp_path: Path, photo: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Sender:
    monkeypatch.setattr(shards, "MAX_MEMBERS", 3)
    project = Project(tmp_path, photo)
    project.add(*range(7))
    project.prepare()
    store = MemoryStore(tmp_path / "remote-cache")
    store.use(monkeypatch)
    return Sender(project, store)


def test_the_store_gets_the_bytes_that_the_disk_would_get(sender: Sender, tmp_path: Path) -> None:
    assert sender.send() == 0

    on_disk = tmp_path / "run-1"
    assert sender.sent() == {path.name: path.read_bytes() for path in (on_disk / "images").iterdir()}
    table = sender.store.contents[sender.store.keys[sender.place / "images.parquet"]]
    assert table == (on_disk / "images.parquet").read_bytes()
    assert not list(sender.store.cache.glob("scratch*"))


def test_what_the_last_run_sent_is_not_prepared_again_even_by_another_machine(sender: Sender) -> None:
    sender.send()
    first = sender.sent()
    sender.record.unlink()
    assert sender.send() == 3
    assert sender.send(sender.manifest.drop(index=4).reset_index(drop=True)) == 2
    assert sender.send(settings=Preprocess(image_size=48)) == 0
    assert sender.send() == 0
    assert sender.sent() == first


def test_what_an_interrupted_run_sent_is_not_prepared_again(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def fail_at_the_third(path: Path) -> str:
        if len(sent) == 2:
            raise DiptychError("The store is full.")
        sent.append(path.name)
        return MemoryStore.send(sender.store, path)

    monkeypatch.setattr(sender.store, "send", fail_at_the_third)
    with pytest.raises(DiptychError, match="full"):
        sender.send()
    assert not list(sender.store.cache.glob("scratch*/*"))
    monkeypatch.undo()
    sender.store.use(monkeypatch)
    monkeypatch.setattr(shards, "MAX_MEMBERS", 3)
    with sender.record.open("a") as record:
        record.write("a line that was cut o")

    assert sender.send() == 2
    assert len(sender.sent()) == 3


def test_what_the_store_has_lost_is_prepared_again(sender: Sender) -> None:
    sender.send()
    first = sender.sent()
    lost = next(file for file in stored_files(sender.place / "images") if file.path.name == "images-00001.npy")
    del sender.store.contents[lost.key]
    assert sender.send() == 2
    assert sender.sent() == first


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in ("images.parquet", "settings.json") for damage in ("lost", "damaged")]
    + [("images", "lost")],
)
def test_what_cannot_be_known_of_the_last_run_is_prepared_again(
    sender: Sender, name: str, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.send()
    first = sender.sent()
    sender.record.unlink()
    if name == "images":
        reason = DiptychError("The list of the files is gone.")
        monkeypatch.setattr(sending, "stored_files", lambda _: (_ for _ in ()).throw(reason))
    else:
        key = sender.store.keys[sender.place / name]
        if damage == "lost":
            del sender.store.contents[key]
        else:
            sender.store.contents[key] = sender.store.contents[key][:-5]
    assert sender.send() == 0
    assert "What the last run recorded is not used again: " in caplog.text
    assert sender.sent() == first


def test_another_image_in_a_shard_is_noticed(sender: Sender) -> None:
    row = sender.manifest.iloc[4]
    key = sender.store.keys[sender.project.root / "data" / row["shard"]]
    content = bytearray(sender.store.contents[key])
    other = sender.project.photo(99)
    start, size = int(row["offset"]), int(row["bytes"])
    content[start : start + size] = other[:size].ljust(size, b"\0")
    sender.store.contents[key] = bytes(content)
    with pytest.raises(DiptychError, match=r"004\.png in .*images-00001\.tar has changed since it was validated"):
        sender.send()


def test_without_a_store_it_is_said(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    sender.store.keys.clear()
    with pytest.raises(DiptychError, match=r"captions\.json is neither on this disk nor in a store"):
        sender.send()


def test_what_a_killed_worker_left_goes_in_time(sender: Sender) -> None:
    leftovers = [sender.store.cache / f"scratch-{name}" for name in ("new", "old")]
    for age, leftover in zip((0.5, 1.5), leftovers, strict=True):
        leftover.mkdir(parents=True)
        (leftover / "pixels").touch()
        os.utime(leftover, (time.time(), time.time() - 86_400 * age))
    sender.send()
    assert [leftover.exists() for leftover in leftovers] == [True, False]


def test_a_full_disk_is_said(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiptychError, match=r"remote-cache cannot be written: No space left"):
        sender.send()
