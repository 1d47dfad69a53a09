"""The embedded dataset as files."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from diptych.data.captions import Dataset, read_dataset, write_dataset
from diptych.data.images import open_image
from diptych.data.scenes.drawing import write_scenes
from diptych.data.shards import list_members, read_member
from diptych.errors import DiptychError


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def write_few(folder: Path, seed: int = 0) -> Dataset:
    return write_scenes(folder, train=6, val=3, test=3, seed=seed, size=48)


def test_the_files_are_the_same_to_the_byte_on_every_machine(tmp_path: Path) -> None:
    write_few(tmp_path / "data")

    assert digests(tmp_path / "data") == {
        "captions.json": "77dcdd79d559144ab0e73c45950ab8585f9675ef9e93cad61cde272d25f6d2e2",
        "images-00000.tar": "c4b9eb05683f2adc7ef15d7a14a7e7bad7fce58ecf0c64f0da1f44cea46b03f0",
    }


def test_writing_again_replaces_the_scenes_by_themselves(tmp_path: Path) -> None:
    write_few(tmp_path / "data")
    before = digests(tmp_path / "data")

    write_few(tmp_path / "data")

    assert digests(tmp_path / "data") == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_another_seed_makes_other_scenes(tmp_path: Path) -> None:
    first, other = write_few(tmp_path / "first"), write_few(tmp_path / "other", seed=1)
    assert [record["scene"] for record in first.images] != [record["scene"] for record in other.images]


def test_a_picture_does_not_depend_on_the_number_of_pictures(tmp_path: Path) -> None:
    few = write_few(tmp_path / "few")
    more = write_scenes(tmp_path / "more", train=8, val=3, test=3, size=48)

    in_test = [[record["sha256"] for record in dataset.images if record["split"] == "test"] for dataset in (few, more)]
    assert in_test[0] == in_test[1]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    dataset = write_few(tmp_path / "data")

    assert read_dataset(tmp_path / "data") == dataset
    assert dataset.info["generator"] == "scenes"
    assert Counter(record["split"] for record in dataset.images) == {"train": 6, "val": 3, "test": 3}
    assert Counter(record["image_id"] for record in dataset.annotations) == dict.fromkeys(range(1, 13), 5)
    for record, member in zip(dataset.images, list_members(tmp_path / "data"), strict=True):
        content = read_member(tmp_path / "data", member)
        assert (record["file_name"], record["sha256"]) == (member.name, hashlib.sha256(content).hexdigest())
        assert open_image(content, 10**6).size == (record["width"], record["height"]) == (48, 48)


def test_scenes_do_not_replace_a_dataset_that_is_not_generated(tmp_path: Path) -> None:
    mine = Dataset({"description": "mine"}, [], [{"id": 1, "file_name": "a.jpg"}], [])
    write_dataset(tmp_path / "data", mine)

    with pytest.raises(DiptychError, match="--replace"):
        write_few(tmp_path / "data")

    assert read_dataset(tmp_path / "data") == mine


def test_scenes_replace_any_dataset_if_the_option_says_so(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", Dataset({}, [], [{"id": 1, "file_name": "a.jpg"}], []))

    write_scenes(tmp_path / "data", train=1, val=1, test=1, size=48, replace=True)

    assert len(read_dataset(tmp_path / "data").images) == 3


def test_a_kill_while_drawing_leaves_the_old_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_few(tmp_path / "data")
    monkeypatch.setattr(
        "diptych.data.scenes.drawing.write_dataset", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )

    with pytest.raises(KeyboardInterrupt):
        write_few(tmp_path / "data", seed=1)

    assert read_dataset(tmp_path / "data") == before
