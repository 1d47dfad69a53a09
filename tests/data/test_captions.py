"""COCO captions files: read with all that real captions may hold, refused with the record that is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pycocotools.coco import COCO

from diptych.data import captions
from diptych.data.captions import Dataset, iterate_records, read_coco, read_dataset, write_dataset
from diptych.errors import DiptychError

IMAGE = {"id": 1, "file_name": "a.jpg", "split": "train"}
ANNOTATION = {"id": 7, "image_id": 1, "caption": "A dog."}


def dump(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_written_dataset_is_read_again(tmp_path: Path) -> None:
    texts = ["A dog.", "", "   ", "x" * 10_000, "👩‍👩‍👧 🐕", "כלב רץ", 'quotes " and \\ and \n', None]
    annotations = [{"id": number, "image_id": 1, "caption": text} for number, text in enumerate(texts)]
    dataset = Dataset({"description": "mine"}, [{"id": 1, "name": "CC"}], [IMAGE], annotations)

    write_dataset(tmp_path, dataset)

    assert read_dataset(tmp_path) == dataset


def test_a_written_dataset_is_what_pycocotools_reads(tmp_path: Path) -> None:
    write_dataset(tmp_path, Dataset({}, [], [IMAGE], [ANNOTATION]))
    coco = COCO(str(tmp_path / "captions.json"))
    assert (coco.imgs, coco.imgToAnns) == ({1: IMAGE}, {1: [ANNOTATION]})


def test_writing_twice_gives_the_same_bytes_with_a_record_a_line(tmp_path: Path) -> None:
    dataset = Dataset({}, [], [IMAGE, {**IMAGE, "id": 2}], [ANNOTATION])
    write_dataset(tmp_path, dataset)
    first = (tmp_path / "captions.json").read_bytes()

    write_dataset(tmp_path, dataset)

    assert (tmp_path / "captions.json").read_bytes() == first
    assert '\n{"id": 2, "file_name": "a.jpg", "split": "train"}\n' in first.decode()


def test_repeated_ids_are_read(tmp_path: Path) -> None:
    content = {"images": [IMAGE, IMAGE], "annotations": [ANNOTATION, ANNOTATION]}
    assert len(read_coco(dump(tmp_path / "c.json", content)).images) == 2


def test_reading_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_coco(dump(tmp_path / "c.json", {"images": [IMAGE], "annotations": [ANNOTATION]}))
    assert capsys.readouterr().out == ""


def test_records_come_one_after_the_other_without_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [{**IMAGE, "id": number, "source": '"images": [\n]}'} for number in (1, 2)]
    dataset = Dataset({"description": "mine"}, [], images, [ANNOTATION])
    write_dataset(tmp_path, dataset)
    monkeypatch.setattr(captions, "read_dataset", None)
    assert [*iterate_records(tmp_path, "images")] == images
    assert [*iterate_records(tmp_path, "annotations")] == [ANNOTATION]


def test_a_dataset_without_records_has_none(tmp_path: Path) -> None:
    write_dataset(tmp_path, Dataset())
    assert not [*iterate_records(tmp_path, "images"), *iterate_records(tmp_path, "annotations")]


@pytest.mark.parametrize("indent", [None, 1])
def test_records_of_a_file_of_another_form_are_the_same(tmp_path: Path, indent: int | None) -> None:
    content = {"annotations": [ANNOTATION], "images": [IMAGE, IMAGE]}
    (tmp_path / "captions.json").write_text(json.dumps(content, indent=indent), encoding="utf-16")
    assert [*iterate_records(tmp_path, "images")] == content["images"]
    assert [*iterate_records(tmp_path, "annotations")] == content["annotations"]


def test_a_record_that_was_laid_out_by_hand_comes_once_as_all_others_do(tmp_path: Path) -> None:
    images = [{**IMAGE, "id": number} for number in (1, 2, 3)]
    write_dataset(tmp_path, Dataset({}, [], images, [ANNOTATION]))
    file = tmp_path / "captions.json"
    file.write_text(file.read_text().replace('{"id": 2, ', '{"id": 2,\n '))
    assert [*iterate_records(tmp_path, "images")] == images


CHANGES: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[:-20],
    "no comma": lambda text: text.replace("},\n", "}\n"),
    "two commas": lambda text: text.replace("},\n", "},,\n"),
    "a last comma": lambda text: text.replace("}\n]", "},\n]"),
    "a blank line": lambda text: text.replace("},\n", "},\n\n"),
    "junk": lambda text: text.replace("},\n", "},\n<<<<<<< HEAD\n"),
    "a stray end": lambda text: text.replace("},\n", "},\n],\n"),
    "junk behind": lambda text: f"{text}x",
    "a table twice": lambda text: text.replace('"annotations"', '"images"'),
    "tables in another order": lambda text: text.replace('"annotations"', '"x"').replace('"images"', '"annotations"'),
    "a table in a line": lambda text: text.replace("[\n", "[ ").replace("\n]", "]"),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "info that is a list": lambda text: text.replace('{"info": {}', '{"info": []'),
}
"""Changes of the file between its records."""

RECORDS = {
    "a key twice": '{"id": 2, "id": 2, ',
    "no number": '{"id": 2 2, ',
    "another type": '{"id": true, ',
    "no object": '{"id": 2}, 3, {"id": 2, ',
    "two in a line": '{"id": 9, "file_name": "b.jpg"}, {"id": 2, ',
    "nested deep": '{"x": ' + "[" * 200 + "]" * 200 + ', "id": 2, ',
    "nested deeper": '{"x": ' + "[" * 100_000 + "]" * 100_000 + ', "id": 2, ',
    "over two lines": '{"id": 2,\n ',
    "a line break in a text": '{"x": "\\n]\\n", "id": 2, ',
    "no UTF-8": '{"x": "\udce9", "id": 2, ',
    "half a character": '{"x": "\\ud800", "id": 2, ',
}
"""What may be in the place of the beginning of the second image's record."""


@pytest.mark.parametrize("table", ["images", "annotations"])
@pytest.mark.parametrize("change", CHANGES)
def test_records_of_a_changed_file_are_those_of_the_whole_or_the_same_error(
    tmp_path: Path, change: str, table: Literal["images", "annotations"]
) -> None:
    assert_read_as_whole(tmp_path, CHANGES[change], table)


@pytest.mark.parametrize("change", RECORDS)
def test_a_changed_record_is_that_of_the_whole_file_or_the_same_error(tmp_path: Path, change: str) -> None:
    assert_read_as_whole(tmp_path, lambda text: text.replace('{"id": 2, ', RECORDS[change]), "images")


def assert_read_as_whole(folder: Path, change: Callable[[str], str], table: Literal["images", "annotations"]) -> None:
    images = [{**IMAGE, "id": number} for number in (1, 2, 3)]
    write_dataset(folder, Dataset({}, [], images, [ANNOTATION, ANNOTATION]))
    file = folder / "captions.json"
    changed = change(file.read_text())
    assert changed != file.read_text()
    file.write_bytes(changed.encode(errors="surrogateescape"))
    try:
        expected = getattr(read_dataset(folder), table)
    except DiptychError as error:
        with pytest.raises(DiptychError, match=re.escape(str(error))):
            list(iterate_records(folder, table))
    else:
        assert list(iterate_records(folder, table)) == expected


def test_a_missing_dataset_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="diptych data scenes"):
        read_dataset(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"nowhere\.json cannot be read: No such file"):
        read_coco(tmp_path / "nowhere.json")


def test_a_cut_off_file_is_named_with_the_place(tmp_path: Path) -> None:
    whole = json.dumps({"images": [IMAGE], "annotations": [ANNOTATION]})
    with pytest.raises(DiptychError, match=r"not complete JSON: .* at line 1, column"):
        read_coco(dump(tmp_path / "c.json", whole[:-20]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "JSON that cannot be read"),
        ("[" * 200_000, "JSON that cannot be read"),
    ],
)
def test_json_that_python_does_not_read_is_refused(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(DiptychError, match=words):
        read_coco(dump(tmp_path / "c.json", content))


def test_binary_content_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DiptychError, match=r"is not in UTF-8: byte 0xFF at offset 0.*not look like a text file"):
        read_coco(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([IMAGE], 'no list "images"'),
        ("3", 'no list "images"'),
        ({"annotations": []}, 'no list "images"'),
        ({"images": {}, "annotations": []}, 'no list "images"'),
        ({"images": [IMAGE]}, 'no list "annotations"'),
        ({"images": [IMAGE], "annotations": 1}, 'no list "annotations"'),
        ({"images": ["a.jpg"], "annotations": []}, r"images\[0\] is not an object"),
        ({"images": [{"id": 1}], "annotations": []}, r'images\[0\] \(id 1\) has no "file_name"'),
        ({"images": [{"file_name": "a.jpg"}], "annotations": []}, r'images\[0\] \(id None\) has no "id"'),
        ({"images": [{**IMAGE, "id": "1"}], "annotations": []}, "id is '1'"),
        ({"images": [{**IMAGE, "id": True}], "annotations": []}, "id is True"),
        ({"images": [IMAGE], "annotations": [{"id": 7, "caption": "A dog."}]}, r'annotations\[0\] .* no "image_id"'),
        ({"images": [IMAGE], "annotations": [{"id": 7, "image_id": 1, "bbox": []}]}, 'no "caption"'),
        ({"images": [IMAGE], "annotations": [{**ANNOTATION, "caption": 5}]}, "caption is 5"),
        ({"images": [], "annotations": [], "info": "x"}, '"info" is not a dict'),
        ({"images": [], "annotations": [], "licenses": {"a": 1}}, '"licenses" is not a list'),
    ],
)
def test_what_is_not_coco_captions_is_refused_with_the_reason(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(DiptychError, match=f"c.json is not a COCO captions file: .*{reason}"):
        read_coco(dump(tmp_path / "c.json", content))
