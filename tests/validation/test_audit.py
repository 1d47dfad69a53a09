"""The audit: accepted rows, quarantined rows, and datasets that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diptych.config import Validate
from diptych.data.captions import read_dataset
from diptych.validation.audit import LEFT_OUT, Audit, audit
from diptych.validation.inspection import Inspection
from diptych.validation.scan import scan_images

Make = Callable[..., Path]
Photo = Callable[..., bytes]
LENIENT = Validate(max_quarantined_share=1.0)


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Audit]:
    def judge(data: Path, settings: Validate = LENIENT, splits: tuple[str, ...] = ("train", "val")) -> Audit:
        dataset = read_dataset(data)
        images = scan_images(data, dataset, max_pixels=settings.max_pixels, workers=1)
        return audit(dataset, images, settings, list(splits), Inspection(tmp_path / "docs"))

    return judge


@pytest.fixture
def sound(photo: Photo) -> list[tuple[str, bytes]]:
    """Two images of train and two of val."""
    return [(split, photo(seed)) for seed, split in enumerate(("train", "train", "val", "val"))]


def reasons(result: Audit) -> dict[tuple[str, int], str]:
    table = result.quarantine
    return {
        (kind, int(row)): reason for kind, row, reason in zip(table["kind"], table["id"], table["reason"], strict=True)
    }


def change_dataset(table: str, index: int, **fields: Any) -> Callable[[Any], None]:
    return lambda dataset: getattr(dataset, table)[index].update(fields)


def test_a_sound_dataset_is_accepted_as_a_whole(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset(sound), Validate(max_quarantined_share=0.0))
    assert result.failures == []
    assert result.summary["success"]
    assert result.manifest["image_id"].tolist() == [1, 2, 3, 4]
    assert result.captions["image_id"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(result.quarantine) == 0
    assert result.summary["images"]["per_split"] == {"train": 2, "val": 2}
    assert result.summary["captions"]["per_split"] == {"train": 4, "val": 4}


def test_tables_have_the_types_that_preprocess_expects(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset(sound))
    types = result.manifest.dtypes.astype(str).to_dict()
    assert {name: types[name] for name in ("image_id", "offset", "bytes", "width", "height")} == {
        "image_id": "int64",
        "offset": "int64",
        "bytes": "int64",
        "width": "int32",
        "height": "int32",
    }
    assert list(result.captions.columns) == ["caption_id", "image_id", "caption"]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "null"),
        ("", "empty"),
        (" \t\n ", "empty"),
        ("x" * 10_000, "10000 characters, more than 1000"),
        ("🤗🐕", "without a letter"),
        ("12 - 34!", "without a letter"),
        ("nan", "'nan' stands for a missing value"),
        (" None ", "'None' stands for a missing value"),
    ],
)
def test_an_unusable_caption_is_left_out_with_its_reason(
    make_dataset: Make, judge: Any, sound: Any, caption: str | None, reason: str
) -> None:
    result = judge(make_dataset(sound, captions={2: ["a dog", caption]}))
    assert result.failures == []
    assert list(reasons(result)) == [("caption", 4)]
    assert reason in reasons(result)["caption", 4]
    assert 4 not in result.captions["caption_id"].tolist()
    assert len(result.manifest) == 4


@pytest.mark.parametrize("caption", ["כלב רץ בשדה", "कुत्ता", "一只狗", "a 🐕", "x" * 1000, "ß", "None of them", "nano"])
def test_any_script_is_a_caption(make_dataset: Make, judge: Any, sound: Any, caption: str) -> None:
    result = judge(make_dataset(sound, captions={2: [caption]}))
    assert len(result.quarantine) == 0
    assert caption in result.captions["caption"].tolist()


def test_captions_are_stored_without_surrounding_blanks(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset(sound, captions={1: ["  a dog\n"]}))
    assert result.captions["caption"][0] == "a dog"


def test_half_a_surrogate_pair_becomes_a_question_mark(make_dataset: Make, judge: Any, sound: Any) -> None:
    data = make_dataset(sound, captions={1: ["a dog MARK"]})
    path = data / "captions.json"
    path.write_text(path.read_text().replace("MARK", "\\ud83d"))
    assert judge(data).captions["caption"][0] == "a dog ?"


def test_a_damaged_image_is_left_out_together_with_its_captions(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset([*sound, ("train", b"text")]))
    assert result.failures == []
    assert "not an image" in reasons(result)["image", 5]
    assert reasons(result)["caption", 9] == reasons(result)["caption", 10] == LEFT_OUT
    assert result.manifest["image_id"].tolist() == [1, 2, 3, 4]


def test_the_quarantine_names_the_file_as_it_was_imported(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset([*sound, ("train", b"text")]))
    assert result.quarantine["file"][0] == "photos/5.png"
    assert result.quarantine["split"][0] == "train"


@pytest.mark.parametrize(
    ("size", "reason"),
    [((31, 64), "31×64 pixels, a side is shorter than 32"), ((400, 40), "400×40 pixels, one side more than 5 times")],
)
def test_images_of_bad_proportions_are_left_out(
    make_dataset: Make, judge: Any, sound: Any, photo: Photo, size: tuple[int, int], reason: str
) -> None:
    result = judge(make_dataset([*sound, ("train", photo(9, size=size))]))
    assert reason in reasons(result)["image", 5]


def test_a_missing_image_is_left_out(make_dataset: Make, judge: Any, sound: Any) -> None:
    assert "missing" in reasons(judge(make_dataset([*sound, ("train", None)])))["image", 5]


def test_an_image_without_a_split_is_left_out(make_dataset: Make, judge: Any, sound: Any, photo: Photo) -> None:
    assert "no split" in reasons(judge(make_dataset([*sound, (None, photo(9))])))["image", 5]


@pytest.mark.parametrize("captions", [[], ["", None]])
def test_an_image_without_a_usable_caption_is_left_out(
    make_dataset: Make, judge: Any, sound: Any, captions: list[Any]
) -> None:
    result = judge(make_dataset(sound, captions={1: captions}))
    assert reasons(result)["image", 1] == "no usable caption"
    assert result.failures == []


def test_several_reasons_are_all_given(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset([*sound, (None, b"")]))
    assert reasons(result)["image", 5] == "empty file; captions.json gives it no split"


def test_too_many_bad_images_refuse_the_dataset_and_name_the_first(make_dataset: Make, judge: Any, sound: Any) -> None:
    data = make_dataset([*sound, *[("train", b"text")] * 7])
    (failure,) = judge(data, Validate(max_quarantined_share=0.5)).failures
    assert "7 of 11 images (63.6%)" in failure
    assert "image 5 (photos/5.png): not an image" in failure
    assert "… and 2 more" in failure


def test_too_many_bad_captions_refuse_the_dataset(make_dataset: Make, judge: Any, sound: Any) -> None:
    (failure,) = judge(make_dataset(sound, captions={1: ["a dog", ""]}), Validate(max_quarantined_share=0.1)).failures
    assert "1 of 8 captions (12.5%)" in failure
    assert "caption 2 (photos/1.png): empty" in failure


def test_captions_left_out_with_their_image_do_not_count_as_bad(make_dataset: Make, judge: Any, sound: Any) -> None:
    data = make_dataset([*sound, ("train", b"text")], captions={5: ["a dog"] * 50})
    assert judge(data, Validate(max_quarantined_share=0.2)).failures == []


def test_repeated_image_ids_refuse_the_dataset(make_dataset: Make, judge: Any, sound: Any) -> None:
    failures = judge(make_dataset(sound, change=change_dataset("images", 1, id=1))).failures
    (failure,) = (text for text in failures if "The images break" in text)
    assert "image 1 (photos/1.png): its id is not unique" in failure
    assert "image 1 (photos/2.png): its id is not unique" in failure


def test_repeated_caption_ids_refuse_the_dataset(make_dataset: Make, judge: Any, sound: Any) -> None:
    (failure,) = judge(make_dataset(sound, change=change_dataset("annotations", 1, id=1))).failures
    assert "caption 1 (photos/1.png): its id is not unique" in failure


def test_an_annotation_for_an_unknown_image_refuses_the_dataset(make_dataset: Make, judge: Any, sound: Any) -> None:
    (failure,) = judge(make_dataset(sound, change=change_dataset("annotations", 0, image_id=99))).failures
    assert "caption 1 (of an unknown image): it belongs to image 99" in failure


def test_an_empty_split_refuses_the_dataset(make_dataset: Make, judge: Any, sound: Any) -> None:
    (failure,) = judge(make_dataset(sound), splits=("train", "val", "test")).failures
    assert "split 'test', which data.splits names, has no usable image: there are 'train' (" in failure


def test_a_split_of_which_nothing_is_usable_counts_as_empty(make_dataset: Make, judge: Any, sound: Any) -> None:
    (failure,) = judge(make_dataset([*sound, ("test", b"")]), splits=("train", "val", "test")).failures
    assert "'test'" in failure


def test_nothing_usable_at_all_refuses_the_dataset(make_dataset: Make, judge: Any) -> None:
    result = judge(make_dataset([("train", b""), ("val", b"text")]))
    assert "'train'" in result.failures[0]
    assert len(result.manifest) == 0


def test_the_same_bytes_in_two_splits_refuse_the_dataset(make_dataset: Make, judge: Any, sound: Any) -> None:
    (failure,) = judge(make_dataset([*sound, ("val", sound[0][1])])).failures
    assert "image 1 (photos/1.png): the same image" in failure
    assert "image 5 (photos/5.png): the same image" in failure


def test_the_same_bytes_twice_in_one_split_are_no_failure(make_dataset: Make, judge: Any, sound: Any) -> None:
    assert judge(make_dataset([*sound, sound[0]])).failures == []


def test_the_same_bytes_in_a_split_without_a_role_are_no_failure(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset([*sound, ("unused", sound[0][1])]))
    assert result.failures == []
    assert len(result.manifest) == 5


def test_bad_files_that_are_alike_do_not_count_as_the_same_image(make_dataset: Make, judge: Any, sound: Any) -> None:
    tiny = b"GIF89a" + bytes(20)
    assert judge(make_dataset([*sound, ("train", tiny), ("val", tiny)])).failures == []


def test_near_duplicates_across_splits_are_reported_and_pass(
    make_dataset: Make, judge: Any, sound: Any, photo: Photo
) -> None:
    result = judge(make_dataset([*sound, ("val", photo(0, file_format="JPEG", quality=70))]))
    assert result.failures == []
    assert result.summary["near_duplicate_pairs"] == 1
    (pair,) = result.summary["near_duplicates"]
    assert (pair["first"]["image_id"], pair["second"]["image_id"]) == (1, 5)


def test_captions_are_grouped_in_the_order_of_the_images(make_dataset: Make, judge: Any, sound: Any) -> None:
    result = judge(make_dataset(sound, change=lambda dataset: dataset.annotations.reverse()))
    assert result.captions["image_id"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert result.captions["caption_id"].tolist() == [2, 1, 4, 3, 6, 5, 8, 7]


def test_the_summary_names_for_each_expectation_the_rows_that_break_it(
    make_dataset: Make, judge: Any, sound: Any
) -> None:
    result = judge(make_dataset([*sound, ("train", b"text")]))
    (broken,) = (item for item in result.summary["expectations"] if not item["success"])
    assert (broken["table"], broken["expectation"], broken["column"]) == (
        "images",
        "ExpectColumnValuesToBeNull",
        "damage",
    )
    assert broken["failed"] == 1
    assert broken["examples"] == ["image 5 (photos/5.png): not an image, or not of a known format"]
