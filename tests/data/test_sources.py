"""Sources: everything that is wrong with one as a whole is told before anything is written, by name and place."""

from __future__ import annotations

import json
import logging
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from diptych.data.captions import read_instances
from diptych.data.images_folder import ImagesFolder
from diptych.data.sources import coco_source, karpathy_source, table_source
from diptych.errors import DiptychError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images a.jpg and b.jpg."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (images / name).write_bytes(name.encode())
    return images


def coco(folder: Path, images: Any = None, annotations: Any = None) -> Path:
    path = folder.parent / "captions.json"
    images = [{"id": 1, "file_name": "a.jpg"}] if images is None else images
    annotations = [{"id": 1, "image_id": 1, "caption": "an a"}] if annotations is None else annotations
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder.parent / name
    path.write_text(text, encoding="utf-8")
    return path


def karpathy(folder: Path, *records: Any) -> Path:
    path = folder.parent / "dataset.json"
    path.write_text(json.dumps({"images": list(records)}))
    return path


def test_a_coco_record_keeps_its_split_and_further_fields(folder: Path) -> None:
    (image,) = coco_source(
        coco(folder, [{"id": 1, "file_name": "a.jpg", "split": "val", "license": 3}]), ImagesFolder(folder)
    ).images
    assert (image.split, image.fields, image.captions[0].text) == ("val", {"license": 3}, "an a")


@pytest.mark.parametrize("field", [{"score": float("nan")}, {"author": "\ud800"}, {"\ud800": 1}])
def test_a_field_that_no_file_can_hold_is_refused_with_its_record(folder: Path, field: dict[str, Any]) -> None:
    path = coco(folder, [{"id": 1, "file_name": "a.jpg", **field}])
    with pytest.raises(DiptychError, match="image 1: a field cannot be stored"):
        coco_source(path, ImagesFolder(folder))


def test_an_address_that_is_none_is_no_obstacle(folder: Path) -> None:
    record = {"id": 1, "file_name": "a.jpg", "coco_url": "http://[x"}
    assert coco_source(coco(folder, [record]), ImagesFolder(folder)).images[0].name == "a.jpg"


def test_a_split_that_is_given_goes_before_the_records_own(folder: Path) -> None:
    path = coco(folder, [{"id": 1, "file_name": "a.jpg", "split": "val"}])
    assert coco_source(path, ImagesFolder(folder), "test").images[0].split == "test"


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"file_name": "COCO_train2014_000000000009.jpg"}, "train2014/COCO_train2014_000000000009.jpg"),
        (
            {"file_name": "000000000009.jpg", "coco_url": "http://localhost/val2017/000000000009.jpg"},
            "val2017/000000000009.jpg",
        ),
    ],
)
def test_the_layouts_of_2014_and_2017_are_known(folder: Path, record: dict[str, Any], place: str) -> None:
    (folder / place).parent.mkdir()
    (folder / place).write_bytes(b"x")
    (image,) = coco_source(coco(folder, [{"id": 1, **record}]), ImagesFolder(folder)).images
    assert image.file == folder / place


@pytest.mark.parametrize(
    ("images", "annotations", "words"),
    [
        ([{"id": 1, "file_name": "../a.jpg"}], None, "image 1: file name '../a.jpg' leads out"),
        ([{"id": 1, "file_name": "/etc/passwd"}], None, "leads out"),
        ([{"id": 1, "file_name": "x\\..\\..\\a.jpg"}], None, r"1 of 1 image files are not in .*\(there is a.jpg\)"),
        ([{"id": 1, "file_name": "a\0.jpg"}], None, "a zero byte"),
        ([{"id": 1, "file_name": " "}], None, "the file name is empty"),
        ([{"id": 1, "file_name": "caf\udce9.jpg"}], None, r"image 1: file name 'caf\?.jpg' is not in UTF-8"),
        ([{"id": 1, "file_name": "c.jpg"}], None, "1 of 1 image files are not in .*: c.jpg"),
        ([{"id": 1, "file_name": "x" * 5000}], None, "1 of 1 image files are not in"),
        ([{"id": 1, "file_name": "a.jpg"}] * 2, None, "each image id must be unique.*: 1"),
        (None, [{"id": 1, "image_id": 1, "caption": "a"}] * 2, "each annotation id must be unique"),
        (None, [{"id": 4, "image_id": 9, "caption": "a"}], r"annotation 4 \(image 9\)"),
        ([{"id": 1, "file_name": "a.jpg", "split": "a/b"}], None, "split 'a/b' may have only letters"),
        ([{"id": 1, "file_name": "a.jpg", "split": 3}], None, "split 3 may have only letters"),
        ([], [], "lists no images"),
        ([{"id": "one", "file_name": "a.jpg"}], [], "id"),
        ([{"id": 1}], [], "file_name"),
        ([{"id": 1, "file_name": 5}], [], "file_name"),
        (None, [{"id": 1, "image_id": 1, "caption": 5}], "caption"),
        (None, [{"id": 1.5, "image_id": 1, "caption": "a"}], "id"),
        (["a"], [], "image"),
        ({"a": 1}, [], "images"),
    ],
)
def test_what_is_wrong_with_a_coco_file_is_told(folder: Path, images: Any, annotations: Any, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        coco_source(coco(folder, images, annotations), ImagesFolder(folder))


def test_a_link_out_of_the_folder_is_refused_and_one_within_followed(folder: Path) -> None:
    secret = folder.parent / "secret.jpg"
    secret.write_bytes(b"x")
    (folder / "out.jpg").symlink_to(secret)
    (folder / "in.jpg").symlink_to(folder / "a.jpg")
    with pytest.raises(DiptychError, match=r"out\.jpg is a link that leads out"):
        coco_source(coco(folder, [{"id": 1, "file_name": "out.jpg"}]), ImagesFolder(folder))
    assert coco_source(coco(folder, [{"id": 1, "file_name": "in.jpg"}]), ImagesFolder(folder)).images


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(DiptychError, match="nowhere, does not exist"):
        coco_source(coco(folder), ImagesFolder(folder / "nowhere"))


def test_a_karpathy_record_is_read_with_its_ids(folder: Path) -> None:
    record = {"filename": "a.jpg", "split": "restval", "cocoid": 7, "sentences": [{"raw": "an a", "sentid": 3}]}
    (image,) = karpathy_source(karpathy(folder, record), ImagesFolder(folder)).images
    assert (image.split, image.id, image.captions[0].id) == ("train", 7, 3)


def test_a_karpathy_filepath_is_looked_into(folder: Path) -> None:
    (folder / "val2014").mkdir()
    (folder / "val2014" / "c.jpg").write_bytes(b"x")
    record = {"filepath": "val2014", "filename": "c.jpg", "split": "test", "imgid": 1, "sentences": []}
    (image,) = karpathy_source(karpathy(folder, record), ImagesFolder(folder)).images
    assert image.file == folder / "val2014" / "c.jpg"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"split": "train", "sentences": []}, r"images\[0\] is not a Karpathy record \(KeyError\('filename'\)\)"),
        ("a.jpg", "is not a Karpathy record"),
        ({"filename": "a.jpg", "split": "train", "imgid": "x", "sentences": []}, "ids must be whole numbers"),
        ({"filename": "a.jpg", "split": "train", "imgid": 1, "sentences": [{"raw": 3}]}, "of a sentence is not a text"),
        ({"filename": "../a.jpg", "split": "train", "imgid": 1, "sentences": []}, "leads out"),
    ],
)
def test_what_is_wrong_with_a_karpathy_record_is_told(folder: Path, record: Any, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        karpathy_source(karpathy(folder, record), ImagesFolder(folder))


@pytest.mark.parametrize(
    ("text", "words"), [('{"images": [', "is not complete JSON"), ("[]", "is not a Karpathy split"), ("{}", "no list")]
)
def test_a_file_that_is_no_karpathy_split_is_told(folder: Path, text: str, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        karpathy_source(table(folder, text, "k.json"), ImagesFolder(folder))
    with pytest.raises(DiptychError, match="cannot be read"):
        karpathy_source(folder / "none.json", ImagesFolder(folder))


def test_rows_of_a_table_are_gathered_by_file(folder: Path) -> None:
    text = '\ufefffile,caption,split\r\na.jpg,"one, two",train\r\na.jpg,three,train\r\nb.jpg,four,\r\n'
    first, second = table_source(table(folder, text), ImagesFolder(folder)).images
    assert ([caption.text for caption in first.captions], first.split) == (["one, two", "three"], "train")
    assert second.split is None


def test_the_time_for_an_image_with_many_rows_grows_with_their_number(folder: Path) -> None:
    """Twenty times the rows take twenty times as long; four hundred times where each row copies those before it."""

    def seconds(rows: int) -> float:
        path = table(folder, "file,caption\n" + "a.jpg,one\n" * rows)
        started = time.process_time()
        source = table_source(path, ImagesFolder(folder))
        assert len(source.images[0].captions) == rows
        return time.process_time() - started

    assert seconds(40_000) < 75 * seconds(2_000)


def test_a_table_may_have_tabs_and_no_splits(folder: Path) -> None:
    (image,) = table_source(table(folder, "file\tcaption\na.jpg\tone\n", "t.tsv"), ImagesFolder(folder), "val").images
    assert image.split == "val"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,caption\na.jpg,one\n", "line 1: no column file; the header has name, caption"),
        ("file|caption\na.jpg|one\n", "line 1: no column caption and file"),
        ("", "the header has nothing"),
        ("file,caption\na.jpg\nb.jpg,x,y\n,z\n", "line 2, 3, 4"),
        ("file,caption\n", "lists no images"),
        (
            "file,caption,split\na.jpg,x,train\na.jpg,y,val\n",
            "line 3: a.jpg is in split val, but an earlier line has it in train",
        ),
        ("file,caption,split\na.jpg,x,a/b\n", "line 2: split 'a/b'"),
        ("file,caption\n../a.jpg,x\n", "line 2: file name '../a.jpg' leads out"),
        ('file,caption\na.jpg,"x\n', "line 2: the quote that opens a cell here is never closed"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_by_its_line(folder: Path, text: str, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        table_source(table(folder, text), ImagesFolder(folder))


def test_rows_that_spell_a_name_in_two_ways_are_of_one_image(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text = f"file, caption,caption_2\n./sub/../a.jpg,one,two\na.jpg ,three,\n{folder}/a.jpg,four,\nb.jpg,five,nan\n"
    first, second = table_source(table(folder, text), ImagesFolder(folder)).images
    assert [caption.text for caption in first.captions] == ["one", "two", "three", "four"]
    assert (first.name, second.name) == ("a.jpg", "b.jpg")
    assert "3 file names are spelled differently" in caplog.text


def test_a_split_that_stands_for_a_missing_value_is_refused(folder: Path) -> None:
    with pytest.raises(DiptychError, match="line 2: split 'nan' stands for a missing value; leave it empty"):
        table_source(table(folder, "file,caption,split\na.jpg,x,nan\n"), ImagesFolder(folder))


def test_each_kind_of_source_matches_names_in_the_same_way(folder: Path) -> None:
    name, file = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    (folder / file).touch()
    record = {"filename": name, "split": "test", "imgid": 1, "sentences": []}
    for source in (
        coco_source(coco(folder, [{"id": 1, "file_name": name}]), ImagesFolder(folder)),
        karpathy_source(karpathy(folder, record), ImagesFolder(folder)),
        table_source(table(folder, f"file,caption\n{name},x\n"), ImagesFolder(folder)),
    ):
        assert [Path(str(image.file)).name for image in source.images] == [file]


def test_links_may_lead_into_the_folder_that_is_given(folder: Path) -> None:
    lake = folder.parent / "lake"
    lake.mkdir()
    (lake / "c.jpg").touch()
    (folder / "c.jpg").symlink_to(lake / "c.jpg")
    path = table(folder, "file,caption\nc.jpg,x\n")
    assert table_source(path, ImagesFolder(folder, lake)).images
    with pytest.raises(DiptychError, match=r"line 2.*--links-within"):
        table_source(path, ImagesFolder(folder))


def test_a_table_of_another_kind_or_encoding_is_refused(folder: Path) -> None:
    with pytest.raises(DiptychError, match=r"a \.csv or a \.tsv"):
        table_source(table(folder, "", "t.xlsx"), ImagesFolder(folder))
    path = folder.parent / "latin.csv"
    path.write_bytes("file,caption\na.jpg,é\n".encode("latin-1"))
    with pytest.raises(DiptychError, match="is not in UTF-8"):
        table_source(path, ImagesFolder(folder))
    with pytest.raises(DiptychError, match="cannot be read"):
        table_source(folder / "none.csv", ImagesFolder(folder))


def instances(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "ball"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7},
            {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 0},
            {"id": 3, "image_id": 1, "category_id": 7},
            {"id": 4, "image_id": 1, "category_id": 3, "iscrowd": 1},
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_instances_tell_what_is_in_the_images_that_they_list(folder: Path) -> None:
    assert read_instances(instances(folder)) == {1: ["ball", "dog", "dog"], 2: []}
    images = [{"id": number, "file_name": "a.jpg"} for number in (1, 2, 5)]
    annotations = [{"id": number, "image_id": number, "caption": "a"} for number in (1, 2, 5)]
    source = coco_source(coco(folder, images, annotations), ImagesFolder(folder), "train", instances(folder))
    assert [image.objects for image in source.images] == [["ball", "dog", "dog"], [], None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": None}, 'it has no list "categories"'),
        ({"categories": [{"id": 7}]}, r"categories\[0\] has the invalid name None"),
        ({"categories": [{"id": 7, "name": "\ud800"}]}, r"categories\[0\] has the invalid name"),
        ({"categories": [{"id": 7, "name": " "}]}, r"categories\[0\] has the invalid name ' '"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, r"categories\[1\] has no unique id"),
        ({"images": [3]}, "an image has no id"),
        ({"annotations": [{"image_id": 1, "category_id": 8}]}, r"annotations\[0\] names an image or category"),
        (
            {"annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 9}]},
            r"annotations\[1\] names an image or category",
        ),
        ({"annotations": ["dog"]}, r"annotations\[0\] names an image or category"),
        (
            {"annotations": [{"image_id": 1, "category_id": 7, "iscrowd": float("inf")}]},
            r"annotations\[0\] names an image or category",
        ),
    ],
)
def test_what_is_wrong_with_an_instances_file_is_told(folder: Path, changes: Any, words: str) -> None:
    with pytest.raises(DiptychError, match=f"instances.json is not a COCO instances file: .*{words}"):
        read_instances(instances(folder, **changes))


def test_instances_of_other_images_are_refused(folder: Path) -> None:
    images, annotations = [{"id": 5, "file_name": "a.jpg"}], [{"id": 1, "image_id": 5, "caption": "a"}]
    with pytest.raises(DiptychError, match=r"instances.json lists none of the images of .*json"):
        coco_source(coco(folder, images, annotations), ImagesFolder(folder), "train", instances(folder))
