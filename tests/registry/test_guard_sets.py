"""A guard set is opened whole and as it was pinned, or refused by a message that says what to do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from diptych.config import Params
from diptych.data.captions import Dataset
from diptych.errors import DiptychError
from diptych.project.dataset import folder_md5
from diptych.project.workspace import Workspace
from diptych.registry.guard_sets import GuardGallery, open_guard_sets

Make = Callable[..., Path]
Photo = Callable[..., bytes]
KEY = r"^params\.yaml: gate\.guard_sets\.old: "


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project whose dataset has other images."""
    workspace = Workspace(tmp_path)
    workspace.artifacts.mkdir()
    write_manifest(workspace)
    return workspace


@pytest.fixture
def make_set(workspace: Workspace, make_dataset: Make) -> Make:
    """Makes guards/old as `make_dataset` makes a dataset."""

    def make(images: Sequence[tuple[str | None, bytes | None]], **options: Any) -> Path:
        folder = workspace.root / "guards" / "old"
        folder.parent.mkdir()
        return make_dataset(images, **options).rename(folder)

    return make


def write_manifest(workspace: Workspace, **contents: bytes) -> None:
    """What validation would have written of a dataset with an image for each split."""
    hashes = [hashlib.sha256(content).hexdigest() for content in contents.values()]
    pd.DataFrame({"split": list(contents), "sha256": hashes}).to_parquet(workspace.manifest)


def pinned(folder: Path, **settings: Any) -> Params:
    """The content of the folder, as it is now, is the guard set `old`."""
    guard_set = {"path": "guards/old", "md5": folder_md5(folder), **settings}
    return Params.model_validate({"threads": 1, "gate": {"guard_sets": {"old": guard_set}}})


def open_set(workspace: Workspace, params: Params) -> GuardGallery:
    (gallery,) = open_guard_sets(workspace, params)
    return gallery


def test_where_there_are_none_nothing_is_read(tmp_path: Path) -> None:
    assert open_guard_sets(Workspace(tmp_path), Params()) == []


def test_a_set_is_all_its_images_with_their_captions(workspace: Workspace, make_set: Make, photo: Photo) -> None:
    captions = {1: ["one"], 2: ["two", " 2 "]}
    folder = make_set(
        [("train", photo(1)), (None, photo(2))], captions=captions, change=lambda made: made.annotations.reverse()
    )
    gallery = open_set(workspace, pinned(folder, margin=5.0))

    assert (gallery.name, gallery.settings.margin, gallery.accepted.data) == ("old", 5.0, folder)
    assert gallery.accepted.images["source"].tolist() == ["photos/1.png", "photos/2.png"]
    assert gallery.accepted.images["split"].tolist() == ["test", "test"]
    assert gallery.accepted.captions["caption"].tolist() == ["one", "2", "two"]
    assert gallery.image_of_caption.tolist() == [0, 1, 1]


def test_of_a_split_only_its_images_have_to_be_whole(
    workspace: Workspace, make_set: Make, photo: Photo, caplog: pytest.LogCaptureFixture
) -> None:
    images = [("train", b"no image"), ("test", photo(1)), ("train", None), ("test", photo(2))]
    gallery = open_set(workspace, pinned(make_set(images), split="test"))

    assert gallery.accepted.images["source"].tolist() == ["photos/2.png", "photos/4.png"]
    assert gallery.image_of_caption.tolist() == [0, 0, 1, 1]
    assert not caplog.records


def test_a_folder_that_is_missing_is_refused(workspace: Workspace, make_set: Make, photo: Photo) -> None:
    folder = make_set([("test", photo(1)), ("test", photo(2))])
    params = pinned(folder)
    folder.rename(workspace.root / "elsewhere")

    with pytest.raises(DiptychError, match=KEY + r"the folder .*/old is missing\. `dvc checkout guards/old\.dvc`"):
        open_guard_sets(workspace, params)


@pytest.mark.parametrize("name", ["captions.json", "images-00000.tar", "images-00001.tar"])
def test_a_set_that_is_not_the_one_it_was_is_refused(
    workspace: Workspace, make_set: Make, photo: Photo, name: str
) -> None:
    folder = make_set([("test", photo(1)), ("test", photo(2))])
    params = pinned(folder)
    with (folder / name).open("a") as file:
        file.write("\n")

    said = rf"is not the pinned set: its hash is {folder_md5(folder)}, .*`dvc checkout --force guards/old\.dvc`"
    with pytest.raises(DiptychError, match=KEY + ".*" + said):
        open_guard_sets(workspace, params)


def repeat_id(dataset: Dataset) -> None:
    dataset.images[1]["id"] = 1


@pytest.mark.parametrize(
    ("second", "options", "reason"),
    [
        (b"no image", {}, "not an image"),
        (None, {}, "missing: the shards have no such member"),
        ("photo", {"captions": {2: []}}, "it has no caption"),
        ("photo", {"captions": {2: ["a dog", " "]}}, "a caption is empty"),
        ("photo", {"captions": {2: [None]}}, "a caption is empty"),
        ("photo", {"change": repeat_id}, "its id is not unique"),
    ],
    ids=["damaged", "missing", "no caption", "blank caption", "null caption", "repeated id"],
)
def test_a_set_of_which_something_cannot_be_used_is_refused(
    workspace: Workspace, make_set: Make, photo: Photo, second: Any, options: dict[str, Any], reason: str
) -> None:
    content = photo(2) if second == "photo" else second
    folder = make_set([("test", photo(1)), ("test", content), ("test", photo(3))], **options)

    said = rf"1 of the 3 images in .* cannot be used: photos/2\.png \(.*{reason}.*\)\. Correct them"
    with pytest.raises(DiptychError, match=KEY + said):
        open_guard_sets(workspace, pinned(folder))


def test_a_set_without_captions_is_refused(workspace: Workspace, make_set: Make, photo: Photo) -> None:
    folder = make_set([("test", photo(1)), ("test", photo(2))], change=lambda dataset: dataset.annotations.clear())

    with pytest.raises(DiptychError, match=KEY + r"2 of the 2 images .* \(it has no caption\); photos/2\.png"):
        open_guard_sets(workspace, pinned(folder))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (None, r"has 1 images\. A comparison needs at least 2"),
        ("exam", r"has 0 images in split 'exam' \(available splits: test\)"),
    ],
)
def test_a_set_with_one_image_or_none_is_refused(
    workspace: Workspace, make_set: Make, photo: Photo, split: str | None, said: str
) -> None:
    with pytest.raises(DiptychError, match=KEY + ".*" + said):
        open_guard_sets(workspace, pinned(make_set([("test", photo(1))]), split=split))


@pytest.mark.parametrize("name", ["captions.json", "images-00000.tar"])
def test_a_set_that_was_damaged_when_it_was_pinned_is_refused(
    workspace: Workspace, make_set: Make, photo: Photo, name: str
) -> None:
    folder = make_set([("test", photo(1)), ("test", photo(2))])
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])

    with pytest.raises(DiptychError, match=KEY + rf".*{name}"):
        open_guard_sets(workspace, pinned(folder))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_set_that_shares_images_with_train_or_val_is_refused(
    workspace: Workspace, make_set: Make, photo: Photo, split: str
) -> None:
    folder = make_set([("test", photo(1)), ("test", photo(2)), ("test", photo(3))])
    write_manifest(workspace, **{split: photo(2), "test": photo(1), "unused": photo(2)})

    said = rf"1 of its 3 images are in train or val of the dataset, such as photos/2\.png \(in '{split}'\)\. .*remove"
    with pytest.raises(DiptychError, match=KEY + said):
        open_guard_sets(workspace, pinned(folder))


def test_a_set_may_share_images_with_test(workspace: Workspace, make_set: Make, photo: Photo) -> None:
    folder = make_set([("test", photo(1)), ("test", photo(2))])
    write_manifest(workspace, test=photo(1), unused=photo(2))

    assert open_set(workspace, pinned(folder))


def test_without_a_validated_dataset_it_is_not_known_what_models_learn_from(
    workspace: Workspace, make_set: Make, photo: Photo
) -> None:
    folder = make_set([("test", photo(1)), ("test", photo(2))])
    workspace.manifest.unlink()

    with pytest.raises(DiptychError, match=r"manifest\.parquet is missing or damaged .*Run `dvc repro validate`"):
        open_guard_sets(workspace, pinned(folder))
