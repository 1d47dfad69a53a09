"""Import of webdatasets."""

from __future__ import annotations

import gzip
import json
import logging
import os
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
    assert "4 have no caption in UTF-8, 2 have no image" in caplog.text


def test_samples_with_several_files_of_a_name_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in [
            ("a.jpg", b"1"),
            ("a.txt", b"one"),
            ("a.jpg", b"2"),
            *sample("b").items(),
            ("b.PNG", b"3"),
        ]:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, BytesIO(content))
        for name, content in sample("c").items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, BytesIO(content))
    with caplog.at_level(logging.WARNING):
        assert [image.name for image in read(path).source.images] == ["a.tar/c.jpg"]
    assert "2 have several files of the same name" in caplog.text


def test_names_and_addresses_that_no_file_can_hold_are_made_so_that_one_can(tmp_path: Path) -> None:
    files = {"\udcff.jpg": b"x", "\udcff.txt": b"text", "\udcff.json": b'{"url": "http://\\ud800"}'}
    source, _ = read(archive(tmp_path / "a.tar", files | {"deep.jpg": b"y", "deep.json": b"[" * 100_000}))
    import_source(tmp_path / "data", source)
    (record,) = read_dataset(tmp_path / "data").images
    assert (record["source"], record["url"]) == ("a.tar/?.jpg", "http://?")


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


def test_archives_whose_bytes_are_elsewhere_than_they_seem_are_refused(shards: Path) -> None:
    joined = (shards / "00000.tar").read_bytes()
    (shards / "joined.tar").write_bytes(joined + joined)
    header = tarfile.TarInfo("minus.jpg").tobuf()
    size = (-512).to_bytes(12, "big", signed=True)
    block = header[:124] + size + header[136:148] + b" " * 8 + header[156:]
    block = block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]
    (shards / "minus.tar").write_bytes(joined[:1024] + block + bytes(1024))
    os.mkfifo(shards / "pipe.tar")
    sparse = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.jpg",
        "GNU.sparse.realsize": "4096",
    }
    with tarfile.open(shards / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers, member.size = sparse, 512
        tar.addfile(member, BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))
    _, damaged = read(shards / "00000.tar", *(shards / f"{name}.tar" for name in ("joined", "minus", "pipe", "sparse")))
    assert {path.stem: reason for path, reason in damaged} == {
        "joined": "has more after its end: archives that were joined, or a gap in a download",
        "minus": "is damaged: its members overlap",
        "pipe": "is no file",
        "sparse": "has sparse files: pack it again without tar's --sparse",
    }


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
        ("x" * 300 + ".tar", "1 archive"),
        ("{" * 5000 + ".tar", "archive"),
        ("@none.txt", r"The list of archives none\.txt cannot be read"),
    ],
)
def test_archives_that_are_missing_stop_the_import(pattern: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        read(pattern)


@pytest.mark.parametrize("content", [b"", "00001.tar"])
def test_an_archive_that_changes_meanwhile_stops_the_import(shards: Path, content: bytes | str) -> None:
    source, _ = read(shards / "*.tar")
    (shards / "00002.tar").write_bytes(content if isinstance(content, bytes) else (shards / content).read_bytes())
    with pytest.raises(DiptychError, match=r"20\.jpg in .*00002\.tar cannot be read: .*Nothing was imported"):
        import_source(shards / "data", source)
    assert not (shards / "data").exists()
