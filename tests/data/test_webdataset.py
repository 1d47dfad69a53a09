"""Import of webdatasets."""

from __future__ import annotations

import gzip
import json
import logging
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pytest

from diptych.data.captions import read_dataset
from diptych.data.importing import import_source
from diptych.data.shards import list_members, read_member
from diptych.data.webdataset import WebDataset, webdataset_source
from diptych.errors import DiptychError


def archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, BytesIO(content))
    return path


def sample(key: str, caption: str = "a thing", **about: object) -> dict[str, bytes]:
    """Return the files of a sample as img2dataset writes them."""
    image = f"picture {key}".encode()
    return {f"{key}.jpg": image, f"{key}.json": json.dumps(about).encode(), f"{key}.txt": caption.encode()}


def read(*patterns: object, split: str | None = None) -> WebDataset:
    return webdataset_source([str(pattern) for pattern in patterns], split, 1)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three archives with two samples each."""
    for number in range(3):
        files = sample(f"{number}0", "a cat\n", url="http://cats") | sample(f"{number}1", "ein Hund, süß")
        archive(tmp_path / f"{number:05d}.tar", files)
    return tmp_path


def test_samples_become_images_with_their_captions(shards: Path) -> None:
    source, damaged = read(shards / "{00000..00002}.tar")
    import_source(shards / "data", source)
    dataset = read_dataset(shards / "data")
    assert damaged == []
    assert [record["source"] for record in dataset.images] == [
        f"{number:05d}.tar/{number}{part}.jpg" for number in range(3) for part in range(2)
    ]
    assert [annotation["caption"] for annotation in dataset.annotations] == ["a cat", "ein Hund, süß"] * 3
    assert [record.get("url") for record in dataset.images] == ["http://cats", None] * 3
    contents = [read_member(shards / "data", member) for member in list_members(shards / "data")]
    assert contents == [f"picture {number}{part}".encode() for number in range(3) for part in range(2)]


@pytest.mark.parametrize("pattern", ["{00000,00002}.tar", "0000[02].tar"])
def test_archives_are_named_by_patterns(shards: Path, pattern: str) -> None:
    assert [str(image.file) for image in read(shards / pattern).source.images][::2] == [
        f"{number}0.jpg in {shards / f'{number:05d}.tar'}" for number in (0, 2)
    ]


def test_archives_are_named_by_a_list_and_count_once(shards: Path) -> None:
    listed = shards / "some.txt"
    listed.write_text(f"{shards / '00001.tar'}\n\n{shards / '00001.tar'}\n")
    assert len(read(f"@{listed}").source.images) == 2


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    archive(tmp_path / "a[1].tar", sample("a"))
    assert len(read(tmp_path / "a[1].tar").source.images) == 1


def test_the_split_is_that_of_all_images(shards: Path) -> None:
    assert {image.split for image in read(shards / "*.tar", split="val").source.images} == {"val"}


def test_samples_without_image_or_caption_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = sample("a") | sample("b", " ") | {"c.json": b"{}", "d.txt": b"alone", "e.jpg": b"mute"}
    files |= {"f.jpg": b"f", "f.json": b'{"caption": "of the JSON file"}', "g.png": b"g", "g.json": b"no JSON"}
    files |= {"x/a.jpg": b"in a folder", "x/a.txt": b"\xff"}
    with caplog.at_level(logging.WARNING):
        source = read(archive(tmp_path / "a.tar", files)).source
    assert [(image.name, image.captions[0].text) for image in source.images] == [
        ("a.tar/a.jpg", "a thing"),
        ("a.tar/f.jpg", "of the JSON file"),
    ]
    assert "4 have no caption, 2 have no image" in caplog.text


def test_damaged_archives_are_told_and_the_others_are_read(shards: Path) -> None:
    whole = (shards / "00000.tar").read_bytes()
    (shards / "00000.tar").write_bytes(whole[:1_100])
    (shards / "00001.tar").write_bytes(gzip.compress(whole))
    (shards / "00003.tar").write_bytes(b"no archive" * 100)
    (shards / "00004.tar").touch()
    source, damaged = read(shards / "*.tar")
    assert [image.name for image in source.images] == ["00002.tar/20.jpg", "00002.tar/21.jpg"]
    reasons = {path.name: reason for path, reason in damaged}
    assert list(reasons) == ["00000.tar", "00001.tar", "00003.tar", "00004.tar"]
    assert reasons["00000.tar"] == "is cut off"
    assert reasons["00001.tar"] == "is compressed: decompress it first"
    assert reasons["00003.tar"].startswith("is damaged, or no tar archive")
    assert reasons["00004.tar"] == "is empty"


def test_an_image_that_is_cut_off_damages_its_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", {"a.txt": b"text", "a.jpg": bytes(3_000)})
    path.write_bytes(path.read_bytes()[:3_000])
    with pytest.raises(DiptychError, match=r"No archive of .*a\.tar has an image with a caption: .*a\.tar is damaged"):
        read(path)


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    source, _ = read(archive(tmp_path / "a.tar", sample("../../../etc/passwd")))
    import_source(tmp_path / "data", source)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["captions.json", "images-00000.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.tar", r"1 archive\(s\) are missing: none\.tar"),
        ("{00..03}.tar", r"4 archive\(s\) are missing: 00\.tar, 01\.tar"),
        ("{0..99999999}.tar", "names more than 1,000,000 archives"),
        ("@none.txt", r"The list of archives none\.txt cannot be read"),
    ],
)
def test_archives_that_are_missing_stop_the_import(pattern: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        read(pattern)


def test_an_archive_that_shrinks_meanwhile_stops_the_import(shards: Path) -> None:
    source, _ = read(shards / "*.tar")
    (shards / "00002.tar").write_bytes(b"")
    with pytest.raises(DiptychError, match=r"20\.jpg in .*00002\.tar cannot be read: .*Nothing was imported"):
        import_source(shards / "data", source)
    assert not (shards / "data").exists()
