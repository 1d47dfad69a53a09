"""Tar shards: what is written is found again, and what is there never changes."""

from __future__ import annotations

import hashlib
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from memory_store import MemoryStore

from diptych.data import shards
from diptych.data.shards import Member, ShardWriter, list_members, read_member, read_members
from diptych.errors import DiptychError


def write(folder: Path, **images: bytes) -> ShardWriter:
    with ShardWriter(folder) as writer:
        for name, content in images.items():
            writer.add(f"{name}.jpg", content)
    return writer


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    images = {"a": b"one", "b": b"", "c": bytes(range(256)) * 5}

    writer = write(tmp_path, **images)

    members = list_members(tmp_path)
    assert [member.name for member in members] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [read_member(tmp_path, member) for member in members] == list(images.values())
    assert writer.shards == ["images-00000.tar"]
    assert writer.bytes == 3 + 0 + 1280


def test_offsets_point_into_the_tar_file(tmp_path: Path) -> None:
    write(tmp_path, a=b"first", b=b"second")

    member = list_members(tmp_path)[1]

    content = (tmp_path / member.shard).read_bytes()
    assert content[member.offset : member.offset + member.size] == b"second"


def test_a_full_shard_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBERS", 2)

    write(tmp_path, a=b"1", b=b"2", c=b"3", d=b"4", e=b"5")

    assert [member.shard[7:12] for member in list_members(tmp_path)] == ["00000", "00000", "00001", "00001", "00002"]


def test_new_images_go_into_new_shards_and_old_shards_stay(tmp_path: Path) -> None:
    write(tmp_path, a=b"old")
    before = (tmp_path / "images-00000.tar").read_bytes()

    write(tmp_path, b=b"new")

    assert (tmp_path / "images-00000.tar").read_bytes() == before
    assert [(member.shard, member.name) for member in list_members(tmp_path)] == [
        ("images-00000.tar", "a.jpg"),
        ("images-00001.tar", "b.jpg"),
    ]


def test_the_same_images_make_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, a=b"one", b=b"two")

    digest = hashlib.sha256((tmp_path / "images-00000.tar").read_bytes()).hexdigest()
    assert digest == "0539609c155c9d85219928dffa09d2015149e9d83c887f0bd184e13ce5f8e832"


def test_shards_are_listed_by_number(tmp_path: Path) -> None:
    for number in (99999, 100000):
        write(tmp_path / "made", a=str(number).encode())
        (tmp_path / "made/images-00000.tar").rename(tmp_path / f"images-{number}.tar")

    assert [member.shard for member in list_members(tmp_path)] == ["images-99999.tar", "images-100000.tar"]


def test_nothing_added_makes_no_shard(tmp_path: Path) -> None:
    assert write(tmp_path).shards == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_until_the_end(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.add("a.jpg", b"one")
        assert list_members(tmp_path) == []


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path) as writer:
        writer.add("a.jpg", b"one")
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".images-00000.tar.tmp").write_bytes(b"half a shard")

    write(tmp_path, a=b"one")

    assert [path.name for path in tmp_path.iterdir()] == ["images-00000.tar"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.jpg", "a/b.jpg", "a\\b.jpg", "..", "a..jpg", "", ".hidden", "a" * 101, "ä.jpg"]
)
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(DiptychError, match="cannot name an image"):
        writer.add(name, b"one")


@pytest.mark.parametrize("kept", [0, 100, 512, 600, 1024, 1536])
def test_a_truncated_shard_is_named(tmp_path: Path, kept: int) -> None:
    write(tmp_path, a=b"one", b=b"two")
    shard = tmp_path / "images-00000.tar"
    shard.write_bytes(shard.read_bytes()[:kept])

    with pytest.raises(DiptychError, match=r"images-00000\.tar is damaged"):
        list_members(tmp_path)


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    write(tmp_path, a=b"one", b=b"two")
    shard = tmp_path / "images-00000.tar"
    content = bytearray(shard.read_bytes())
    content[1024 + 20] ^= 0xFF
    shard.write_bytes(content)

    with pytest.raises(DiptychError, match="damaged"):
        list_members(tmp_path)


def test_only_regular_files_count(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images-00000.tar", "w") as tar:
        folder, link, image = tarfile.TarInfo("folder"), tarfile.TarInfo("link.jpg"), tarfile.TarInfo("a.jpg")
        folder.type, link.type, link.linkname, image.size = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd", 3
        for entry in (folder, link):
            tar.addfile(entry)
        tar.addfile(image, BytesIO(b"one"))

    assert [member.name for member in list_members(tmp_path)] == ["a.jpg"]


def test_other_files_are_no_shards(tmp_path: Path) -> None:
    (tmp_path / "images-new.tar").write_bytes(b"something else")
    assert list_members(tmp_path) == []


def test_reading_from_a_missing_shard_says_how_to_restore_it(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="dvc checkout"):
        read_member(tmp_path, Member("images-00000.tar", "a.jpg", 512, 3))


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "images-00000.tar").mkdir()
    with pytest.raises(DiptychError, match=r"images-00000\.tar cannot be read: Is a directory"):
        read_member(tmp_path, Member("images-00000.tar", "a.jpg", 512, 3))


def test_reading_beyond_the_end_is_damage(tmp_path: Path) -> None:
    write(tmp_path, a=b"one")
    with pytest.raises(DiptychError, match="damaged"):
        read_member(tmp_path, Member("images-00000.tar", "a.jpg", 10_000, 1_000))


def test_images_of_shards_in_a_store_are_requested_many_at_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBERS", 40)
    monkeypatch.setattr(shards, "_REQUESTS", 64)
    with ShardWriter(tmp_path) as writer:
        for index in range(100):
            writer.add(f"{index}.jpg", bytes([index]) * (index + 1))
    members = list_members(tmp_path)
    expected = list(read_members(tmp_path, members))
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    store.take(tmp_path / "images-00000.tar", tmp_path / "images-00002.tar")

    assert list(read_members(tmp_path, members)) == expected
    assert [len(call) for call in store.calls] == [40, 20]
    assert expected == [bytes([index]) * (index + 1) for index in range(100)]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store that has the three shards of `tmp_path`/data."""
    monkeypatch.setattr(shards, "MAX_MEMBERS", 40)
    with ShardWriter(tmp_path / "data") as writer:
        for index in range(100):
            writer.add(f"{index}.jpg", bytes([index]) * (3000 * index % 70_000))
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    return store


def take_all(store: MemoryStore, data: Path) -> None:
    store.take(*sorted(data.iterdir(), reverse=True))
    data.rmdir()


def test_images_of_a_dataset_in_a_store_are_those_of_the_same_shards_on_the_disk(
    tmp_path: Path, elsewhere: MemoryStore
) -> None:
    (tmp_path / "data" / "captions.json").write_text("no shard")
    expected, contents = (
        list_members(tmp_path / "data"),
        list(read_members(tmp_path / "data", list_members(tmp_path / "data"))),
    )
    take_all(elsewhere, tmp_path / "data")

    assert list_members(tmp_path / "data") == expected
    assert elsewhere.bytes_read < sum(map(len, elsewhere.contents.values()))
    requests = len(elsewhere.calls)
    assert list_members(tmp_path / "data") == expected
    assert len(elsewhere.calls) == requests
    assert list(read_members(tmp_path / "data", expected)) == contents


@pytest.mark.parametrize("damage", [b"", b"[]", b"x"])
def test_a_damaged_list_of_a_shards_images_is_made_anew(tmp_path: Path, elsewhere: MemoryStore, damage: bytes) -> None:
    expected = list_members(tmp_path / "data")
    take_all(elsewhere, tmp_path / "data")
    list_members(tmp_path / "data")
    kept = list((tmp_path / "cache" / "members").iterdir())
    assert len(kept) == 3
    whole = kept[0].read_bytes()
    kept[0].write_bytes(damage + whole[len(damage) :] if damage else b"")
    assert list_members(tmp_path / "data") == expected
    assert kept[0].read_bytes() == whole


def test_without_room_in_the_cache_the_images_of_a_shard_are_found_each_time(
    tmp_path: Path, elsewhere: MemoryStore
) -> None:
    expected = list_members(tmp_path / "data")
    take_all(elsewhere, tmp_path / "data")
    elsewhere.cache.write_text("a file")
    assert list_members(tmp_path / "data") == list_members(tmp_path / "data") == expected


@pytest.mark.parametrize("missing", [1, 1024, 5000])
def test_a_shard_that_is_cut_off_in_a_store_is_named(tmp_path: Path, elsewhere: MemoryStore, missing: int) -> None:
    shard = tmp_path / "data" / "images-00001.tar"
    # The end of an archive is zeros, which fill up a record of 20 blocks.
    content = shard.read_bytes().rstrip(b"\0") + bytes(1024)
    shard.write_bytes(content[:-missing])
    take_all(elsewhere, tmp_path / "data")
    with pytest.raises(DiptychError, match=r"images-00001\.tar is damaged or cut off in the store"):
        list_members(tmp_path / "data")


def test_where_no_store_has_a_dataset_it_has_no_images(tmp_path: Path, elsewhere: MemoryStore) -> None:
    assert list_members(tmp_path / "other") == []
