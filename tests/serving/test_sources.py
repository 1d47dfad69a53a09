"""The images of a collection, wherever they are."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from memory_store import MemoryStore
from searching import photo, write_photos

from diptych.data.captions import read_dataset, write_dataset
from diptych.data.images_folder import ImagesFolder
from diptych.data.importing import import_table
from diptych.errors import DiptychError
from diptych.serving.collections import fingerprint, open_source
from diptych.serving.sources import DatasetSource, FilesSource, Source

PHOTOS = ["a.png", "sub/b.JPG"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", PHOTOS)


def again(source: Source, data: Path = Path("data")) -> Source:
    return open_source(source.description, data)


def test_a_folder_gives_its_images_by_path_and_no_other_files(photos: Path) -> None:
    for other in ("notes.txt", ".hidden.png", ".thumbnails/c.png"):
        write_photos(photos, [other])
    (photos / "link.png").symlink_to("/etc/hostname")
    source = FilesSource(str(photos))

    assert [(item.path, item.attributes) for item in source.items()] == [
        ("a.png", {"folder": "."}),
        ("sub/b.JPG", {"folder": "sub"}),
    ]
    assert source.read("sub/b.JPG") == photo(1)
    assert again(source).items() == source.items()


def test_a_changed_file_has_another_stamp(photos: Path) -> None:
    before = FilesSource(str(photos)).items()
    (photos / "a.png").write_bytes(photo(7))
    after = FilesSource(str(photos)).items()

    assert [old.stamp == new.stamp for old, new in zip(before, after, strict=True)] == [False, True]
    assert fingerprint(before) != fingerprint(after)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"nowhere, does not exist"):
        FilesSource(str(tmp_path / "nowhere")).items()


def test_a_name_that_is_not_utf8_is_left_out(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / os.fsdecode(b"sur\xff.png")).write_bytes(photo(3))
    assert [item.path for item in FilesSource(str(photos)).items()] == PHOTOS
    assert "1 images are left out, since their names are not UTF-8" in caplog.text


def test_an_image_whose_record_has_no_hash_is_known_by_its_place(tmp_path: Path, photos: Path) -> None:
    (photos / "captions.csv").write_text("file,caption\na.png,A caption.\n")
    import_table(tmp_path / "data", photos / "captions.csv", ImagesFolder(photos))
    dataset = read_dataset(tmp_path / "data")
    images = [{**record, "sha256": None} for record in dataset.images]
    write_dataset(tmp_path / "data", replace(dataset, images=images))
    source = DatasetSource(tmp_path / "data")
    (item,) = source.items()
    assert source.read(item.path) == photo(0)
    assert item == again(source, tmp_path / "data").items()[0]


def test_the_dataset_gives_its_images_with_captions_and_splits(tmp_path: Path, photos: Path) -> None:
    (photos / "captions.csv").write_text("file,caption,split\na.png,A caption.,train\nsub/b.JPG,Another.,test\n")
    import_table(tmp_path / "data", photos / "captions.csv", ImagesFolder(photos))
    source = DatasetSource(tmp_path / "data")
    items = source.items()

    assert [(item.captions, item.attributes) for item in items] == [
        (("A caption.",), {"split": "train"}),
        (("Another.",), {"split": "test"}),
    ]
    assert [source.read(item.path) for item in items] == [photo(0), photo(1)]
    assert [item.captions for item in DatasetSource(tmp_path / "data", "test").items()] == [("Another.",)]
    assert again(source, tmp_path / "data").items() == items
    with pytest.raises(DiptychError, match="no split 'val': it has test, train"):
        DatasetSource(tmp_path / "data", "val").items()


def test_a_dataset_that_only_a_store_has_gives_the_same(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "captions.csv").write_text("file,caption,split\na.png,A caption.,train\nsub/b.JPG,Another.,test\n")
    import_table(tmp_path / "data", photos / "captions.csv", ImagesFolder(photos))
    items = DatasetSource(tmp_path / "data").items()
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    store.take(*(tmp_path / "data").iterdir())
    (tmp_path / "data").rmdir()

    source = DatasetSource(tmp_path / "data")

    assert source.items() == items
    assert [source.read(item.path) for item in items] == [photo(0), photo(1)]
