"""Importing: only what is new, all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from diptych.data import importing
from diptych.data.captions import read_dataset, write_dataset
from diptych.data.growth import Rules
from diptych.data.images_folder import ImagesFolder
from diptych.data.importing import CocoSource, ImportSummary, import_coco, import_karpathy, import_table
from diptych.data.scenes.drawing import write_scenes
from diptych.data.shards import list_members, read_member
from diptych.errors import DiptychError


class Photos:
    """A folder of image files with a COCO captions file, and a dataset folder to import it into."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "photos"
        self.folder.mkdir()
        self.data = root / "data"
        self.json = root / "captions.json"

    def write(self, contents: dict[int, bytes], captions: dict[int, list[str | None]] | None = None) -> None:
        """Images by id, with one caption each unless others are given."""
        for number, content in contents.items():
            (self.folder / f"{number}.jpg").write_bytes(content)
        captions = captions or {number: [f"photo {number}"] for number in contents}
        pairs = [(number, text) for number, texts in captions.items() for text in texts]
        records = {
            "images": [{"id": number, "file_name": f"{number}.jpg"} for number in contents],
            "annotations": [{"id": i, "image_id": number, "caption": text} for i, (number, text) in enumerate(pairs)],
        }
        self.json.write_text(json.dumps(records))

    def bring(self, split: str | None = "train", **rules: Any) -> ImportSummary:
        return import_coco(self.data, [CocoSource(self.json, ImagesFolder(self.folder), split)], Rules(**rules))

    def files(self) -> dict[str, bytes]:
        """The dataset as it lies there."""
        return {path.name: path.read_bytes() for path in self.data.iterdir()} if self.data.exists() else {}


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path)


def texts(folder: Path) -> dict[int, list[str | None]]:
    found: dict[int, list[str | None]] = {}
    for annotation in read_dataset(folder).annotations:
        found.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return found


def test_images_captions_and_ids_come_over(photos: Photos) -> None:
    photos.write({7: b"seven", 9: b"nine"}, {7: ["a", "b"], 9: ["c"]})
    summary = photos.bring()
    assert (summary.images_added, summary.captions_added, summary.shards) == (2, 3, 1)
    members = list_members(photos.data)
    assert [member.name for member in members] == ["000000000007.jpg", "000000000009.jpg"]
    assert [read_member(photos.data, member) for member in members] == [b"seven", b"nine"]
    assert texts(photos.data) == {7: ["a", "b"], 9: ["c"]}
    assert [record["source"] for record in read_dataset(photos.data).images] == ["7.jpg", "9.jpg"]


def test_importing_again_adds_nothing_and_changes_no_byte(photos: Photos) -> None:
    photos.write({1: b"one", 2: b"two"})
    photos.bring()
    before = photos.files()
    summary = photos.bring()
    assert (summary.images_added, summary.images_known, summary.captions_known) == (0, 2, 2)
    assert photos.files() == before


def test_more_images_go_into_new_shards_and_old_ones_stay_untouched(photos: Photos) -> None:
    photos.write({1: b"one"})
    photos.bring()
    old = photos.data / "images-00000.tar"
    # As DVC leaves them: linked into its cache and read-only.
    os.link(old, photos.data.parent / "cache")
    os.link(photos.data / "captions.json", photos.data.parent / "cached.json")
    cached = (photos.data.parent / "cached.json").read_bytes()
    old.chmod(0o444)
    before, inode = old.read_bytes(), old.stat().st_ino
    photos.write({1: b"one", 2: b"two"})
    assert photos.bring().images_added == 1
    assert (old.read_bytes(), old.stat().st_ino) == (before, inode)
    assert (photos.data.parent / "cached.json").read_bytes() == cached
    assert {member.shard for member in list_members(photos.data)} == {"images-00000.tar", "images-00001.tar"}


def test_known_images_are_told_what_is_in_them_and_once_is_enough(photos: Photos) -> None:
    photos.write({1: b"one", 2: b"two"})
    photos.bring()
    before = photos.files()
    instances = photos.folder / "instances.json"
    annotations = [{"id": 1, "image_id": 2, "category_id": 1}]
    categories = [{"id": 1, "name": "dog"}]
    instances.write_text(json.dumps({"images": [{"id": 2}], "annotations": annotations, "categories": categories}))
    source = CocoSource(photos.json, ImagesFolder(photos.folder), "train", instances)
    summary = import_coco(photos.data, [source])
    assert (summary.images_added, summary.objects_changed) == (0, 1)
    assert [record.get("objects") for record in read_dataset(photos.data).images] == [None, ["dog"]]
    after = photos.files()
    assert {name for name in after if after[name] != before.get(name)} == {"captions.json"}
    assert import_coco(photos.data, [source]).objects_changed == 0
    photos.bring()
    assert photos.files() == after


def test_the_same_content_in_one_split_becomes_one_image_with_all_captions(photos: Photos) -> None:
    photos.write({1: b"same", 2: b"same"}, {1: ["a", "b"], 2: ["b", "c"]})
    summary = photos.bring()
    assert (summary.images_added, summary.images_known) == (1, 1)
    assert texts(photos.data) == {1: ["a", "b", "c"]}


def test_new_captions_of_a_known_image_are_added(photos: Photos) -> None:
    photos.write({1: b"one"}, {1: ["a"]})
    photos.bring()
    photos.write({1: b"one"}, {1: ["a", "b"]})
    summary = photos.bring()
    assert (summary.images_added, summary.captions_added, summary.shards) == (0, 1, 0)
    assert texts(photos.data) == {1: ["a", "b"]}


def test_content_that_is_in_another_split_is_refused_with_names_and_nothing_changes(photos: Photos) -> None:
    photos.write({1: b"one", 2: b"two"})
    photos.bring("train")
    before = photos.files()
    photos.write({1: b"one", 2: b"two", 3: b"three"})
    with pytest.raises(
        DiptychError, match=r"2 images are in the dataset in another split.*1\.jpg \(val; .* in train\)"
    ):
        photos.bring("val")
    assert photos.files() == before


def test_keep_split_leaves_such_images_where_they_are(photos: Photos) -> None:
    photos.write({1: b"one"})
    photos.bring("train")
    photos.write({1: b"one", 2: b"two"})
    photos.bring("val", keep_split=True)
    assert [record["split"] for record in read_dataset(photos.data).images] == ["train", "val"]


def test_dealt_images_stay_in_their_split_as_the_dataset_grows(photos: Photos) -> None:
    contents = {number: f"photo {number}".encode() for number in range(1, 201)}
    photos.write(dict(list(contents.items())[:100]))
    photos.bring(None)
    first = {record["sha256"]: record["split"] for record in read_dataset(photos.data).images}
    photos.write(contents)
    photos.bring(None)
    second = {record["sha256"]: record["split"] for record in read_dataset(photos.data).images}
    assert first.items() <= second.items()
    counts = [list(second.values()).count(split) for split in ("train", "val", "test")]
    assert counts == pytest.approx([160, 20, 20], abs=15)


def test_dealing_overrides_the_records_and_excludes_a_given_split(photos: Photos) -> None:
    photos.write({number: str(number).encode() for number in range(1, 40)})
    photos.bring(None, deal=(1, 0, 0))
    assert {record["split"] for record in read_dataset(photos.data).images} == {"train"}
    with pytest.raises(DiptychError, match="not both"):
        photos.bring("train", deal=(1, 1, 1))
    with pytest.raises(DiptychError, match="not both"):
        import_table(photos.data, photos.json, ImagesFolder(photos.folder), "train", Rules(deal=(1, 1, 1)))


def test_dealing_in_other_parts_what_is_there_already_is_refused(photos: Photos) -> None:
    photos.write({number: str(number).encode() for number in range(1, 40)})
    photos.bring("train")
    with pytest.raises(DiptychError, match=r"in the dataset in another split.* again, remove data/"):
        photos.bring(None, deal=(1, 1, 1))
    photos.bring(None, deal=(1, 1, 1), keep_split=True)
    photos.bring(None, deal=(1, 0, 0))


def test_an_id_that_is_taken_by_another_image_is_replaced(photos: Photos) -> None:
    photos.write({1: b"one"})
    photos.bring()
    photos.write({1: b"another one"})
    photos.bring()
    assert [record["id"] for record in read_dataset(photos.data).images] == [1, 2]
    assert len({annotation["id"] for annotation in read_dataset(photos.data).annotations}) == 2


def test_several_files_each_have_their_split(photos: Photos, tmp_path: Path) -> None:
    photos.write({1: b"one"})
    other = Path(tmp_path / "other.json")
    other.write_text(photos.json.read_text().replace("1.jpg", "2.jpg"))
    (photos.folder / "2.jpg").write_bytes(b"two")
    sources = [
        CocoSource(photos.json, ImagesFolder(photos.folder), "train"),
        CocoSource(other, ImagesFolder(photos.folder), "val"),
    ]
    import_coco(photos.data, sources)
    assert [record["split"] for record in read_dataset(photos.data).images] == ["train", "val"]


def test_a_karpathy_split_and_a_table_are_imported(photos: Photos, tmp_path: Path) -> None:
    photos.write({1: b"one", 2: b"two"})
    (tmp_path / "k.json").write_text(
        json.dumps(
            {
                "images": [
                    {"filename": "1.jpg", "split": "restval", "cocoid": 11, "sentences": [{"raw": "a", "sentid": 5}]}
                ]
            }
        )
    )
    import_karpathy(photos.data, tmp_path / "k.json", ImagesFolder(photos.folder))
    (tmp_path / "t.csv").write_text("file,caption,split\n2.jpg,b,val\n")
    import_table(photos.data, tmp_path / "t.csv", ImagesFolder(photos.folder))
    assert [(record["id"], record["split"]) for record in read_dataset(photos.data).images] == [
        (11, "train"),
        (12, "val"),
    ]


@pytest.mark.parametrize("content", [b"", b"this is text", b"\xff\xd8\xff\xe0 cut off"])
def test_an_image_that_does_not_decode_is_for_the_validation_to_judge(photos: Photos, content: bytes) -> None:
    photos.write({1: content})
    assert photos.bring().images_added == 1


def test_null_and_strange_captions_come_over_as_they_are(photos: Photos) -> None:
    strange: list[str | None] = [None, "", "   ", "🙂", "שלום", "x" * 10_000]
    photos.write({1: b"one"}, {1: strange})
    photos.bring()
    assert texts(photos.data) == {1: strange}


def test_generated_scenes_ask_what_becomes_of_them(photos: Photos) -> None:
    write_scenes(photos.data, train=2, val=1, test=1)
    before = photos.files()
    photos.write({1: b"one"})
    with pytest.raises(DiptychError, match=r"--replace .* --add"):
        photos.bring()
    assert photos.files() == before
    photos.bring(onto_scenes="add")
    assert len(read_dataset(photos.data).images) == 5


def test_generated_scenes_can_be_replaced(photos: Photos) -> None:
    write_scenes(photos.data, train=2, val=1, test=1)
    photos.write({1: b"one"})
    photos.bring(onto_scenes="replace")
    assert [record["source"] for record in read_dataset(photos.data).images] == ["1.jpg"]


def test_a_dataset_of_ones_own_is_not_replaced_and_that_is_said(
    photos: Photos, caplog: pytest.LogCaptureFixture
) -> None:
    photos.write({1: b"one"})
    photos.bring(onto_scenes="replace")
    photos.write({2: b"two"})
    assert not caplog.records
    photos.bring(onto_scenes="replace")
    assert "To start again, remove" in caplog.text
    assert len(read_dataset(photos.data).images) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_dataset(photos: Photos, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    photos.write({1: b"one"})
    photos.bring()
    before = photos.files()
    photos.write({1: b"one", 2: b"two"})

    def full(*arguments: object) -> None:
        raise OSError(number, "No space left on device")

    for name in ("write_dataset", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(importing, name, full)
            with pytest.raises(DiptychError, match="disk is full"):
                photos.bring()
        assert photos.files() == before
    assert photos.bring().images_added == 1


def test_another_error_of_the_disk_is_not_called_full(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    photos.write({1: b"one"})

    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(importing, "write_dataset", broken)
    with pytest.raises(OSError, match="Input/output"):
        photos.bring()
    assert not photos.data.exists()


def test_what_a_killed_import_left_is_removed_by_the_next(photos: Photos) -> None:
    """In a process of its own, killed when its shards are in place and the captions file is not."""
    photos.write({1: b"one"})
    photos.bring()
    before = photos.files()
    photos.write({1: b"one", 2: b"two"})
    pid = os.fork()
    if pid == 0:
        setattr(importing, "write_dataset", lambda *arguments: os._exit(9))  # noqa: B010
        photos.bring()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(read_dataset(photos.data).images) == 1
    assert {"images-00001.tar", ".importing.json"} <= set(photos.files())
    photos.write({1: b"one"})
    photos.bring()
    assert photos.files() == before


def test_an_unreadable_file_is_named(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    photos.write({1: b"one"})

    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.suffix == ".jpg":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DiptychError, match=r"1\.jpg cannot be read: Permission denied"):
        photos.bring()


def test_licences_keep_their_meaning_when_numbers_clash(photos: Photos) -> None:
    photos.write({1: b"one"})
    content = json.loads(photos.json.read_text())
    content["licenses"] = [{"id": 1, "name": "A"}]
    content["images"][0]["license"] = 1
    photos.json.write_text(json.dumps(content))
    photos.bring()
    photos.write({2: b"two"})
    content = json.loads(photos.json.read_text())
    content["licenses"] = [{"id": 1, "name": "B"}]
    content["images"][0]["license"] = 1
    photos.json.write_text(json.dumps(content))
    photos.bring()
    dataset = read_dataset(photos.data)
    names = {licence["id"]: licence["name"] for licence in dataset.licenses}
    assert [names[record["license"]] for record in dataset.images] == ["A", "B"]


def test_a_dataset_without_hashes_still_grows(photos: Photos) -> None:
    photos.write({1: b"one"})
    photos.bring()
    dataset = read_dataset(photos.data)
    del dataset.images[0]["sha256"]
    write_dataset(photos.data, dataset)
    photos.write({2: b"two"})
    assert photos.bring().images_added == 1
