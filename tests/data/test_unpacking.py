"""Zip archives: what is asked for is unpacked, and nothing gets out of its folder."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from diptych.data.downloading import part_of
from diptych.data.unpacking import unpack
from diptych.errors import DiptychError

FILES = {"photos/a.jpg": b"first", "photos/deep/b.jpg": b"second", "other/c.jpg": b"third", "photos2/d.jpg": b"no"}


def archive(folder: Path, files: dict[str, bytes], *, link: str | None = None) -> Path:
    path = folder / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in files.items():
            content.writestr(name, data)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            content.writestr(entry, "/etc/passwd")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_that_is_asked_for_is_unpacked_alone(tmp_path: Path) -> None:
    path = archive(tmp_path, FILES)
    unpack(path, "photos", tmp_path / "photos", 100)
    assert contents(tmp_path / "photos") == {"a.jpg": b"first", "deep/b.jpg": b"second"}
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "photos"]


def test_one_file_is_unpacked_too(tmp_path: Path) -> None:
    unpack(archive(tmp_path, {"a.json": b"{}", "b.json": b"[]"}), "b.json", tmp_path / "b.json", 2)
    assert (tmp_path / "b.json").read_bytes() == b"[]"
    assert not (tmp_path / "a.json").exists()


def test_an_interrupted_call_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, target = archive(tmp_path, FILES), tmp_path / "photos"
    extract, extracted = zipfile.ZipFile.extract, list[str]()

    def interrupted(self: zipfile.ZipFile, entry: zipfile.ZipInfo, to: Path) -> str:
        if entry.filename == "photos/deep/b.jpg" and len(extracted) == 1:
            (Path(to) / "photos" / "deep").mkdir()
            (Path(to) / entry.filename).write_bytes(b"secone"[: len(b"second")])
            extracted.append("")
            raise KeyboardInterrupt
        extracted.append(entry.filename)
        return extract(self, entry, to)

    monkeypatch.setattr(zipfile.ZipFile, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(path, "photos", target, 100)
    assert not target.exists()
    assert part_of(target).is_dir()

    unpack(path, "photos", target, 100)
    assert extracted == ["photos/a.jpg", "", "photos/deep/b.jpg"]
    assert contents(target) == {"a.jpg": b"first", "deep/b.jpg": b"second"}


@pytest.mark.parametrize("name", ["../out.jpg", "photos/../../out.jpg", "/tmp/out.jpg"])
def test_names_that_lead_out_are_refused_before_anything_is_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in", FILES | {name: b"out"})
    with pytest.raises(DiptychError, match=rf"archive.zip cannot be unpacked: .* lead out of its folder: '{name}'"):
        unpack(path, "photos", tmp_path / "in" / "photos", 100)
    assert list(tmp_path.rglob("*.jpg")) == []


def test_links_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, FILES, link="photos/link.jpg")
    with pytest.raises(DiptychError, match=r"has links, .*: 'photos/link.jpg'"):
        unpack(path, "photos", tmp_path / "photos", 100)
    assert list(tmp_path.iterdir()) == [path]


def test_more_bytes_than_expected_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, FILES | {"photos/bomb.jpg": bytes(10_000_000)})
    assert path.stat().st_size < 100_000
    with pytest.raises(DiptychError, match="photos has 10,000,011 bytes, more than the expected 1,000,000"):
        unpack(path, "photos", tmp_path / "photos", 1_000_000)
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_that_understates_a_size_is_refused_within_it(tmp_path: Path) -> None:
    path = archive(tmp_path, {"photos/bomb.jpg": bytes(10_000_000)})
    path.write_bytes(path.read_bytes().replace((10_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DiptychError, match="cannot be unpacked: Bad CRC-32"):
        unpack(path, "photos", tmp_path / "photos", 100)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.jpg")) <= 10


def test_a_member_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="it has no pictures"):
        unpack(archive(tmp_path, FILES), "pictures", tmp_path / "pictures", 100)


@pytest.mark.parametrize("damage", [(0, 40), (-40, 1000)])
def test_a_damaged_archive_is_an_error(tmp_path: Path, damage: tuple[int, int]) -> None:
    path = archive(tmp_path, {"photos/a.jpg": b"first" * 20})
    content = bytearray(path.read_bytes())
    content[slice(*damage)] = bytes(len(content[slice(*damage)]))
    path.write_bytes(content)
    with pytest.raises(DiptychError, match=r"archive.zip cannot be unpacked: .* Remove it"):
        unpack(path, "photos", tmp_path / "photos", 1000)
    assert not (tmp_path / "photos").exists()
