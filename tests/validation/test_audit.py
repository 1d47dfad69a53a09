"""The audit: accepted rows, quarantined rows, and datasets that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diptych.config import Validate
from diptych.data.captions import read_dataset
from diptych.validation.audit import LEFT_OUT, Audit, audit, caption_table
from diptych.validation.inspection import Inspection
from diptych.validation.scan import scan_images

Make = Callable[..., Path]
Photo = Callable[..., bytes]
LENIENT = Validate(max_quarantined_share=1.0)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Audit]:
    def judge(data: Path, settings: Validate = LENIENT, splits: tuple[str, ...] = ("train", "val")) -> Audit:
        dataset = read_dataset(data)
        images = scan_images(data, dataset.images, max_pixels=settings.max_pixels, workers=1)
        captions = caption_table(dataset.annotations)
        return audit(captions, images, settings, list(splits), Inspection(tmp_path_factory.mktemp("docs")))

    return judge


@pytest.fixture(scope="module")
def sound(photo: Photo) -> list[tuple[str, bytes]]:
    """Two images of train and two of val."""
    return [(split, photo(seed)) for seed, split in enumerate(("train", "train", "val", "val"))]


@pytest.fixture(scope="module")
def audits() -> dict[str, Audit]:
    """Audits that several tests look at: each takes half a second."""
    return {}


@pytest.fixture
def of_sound(make_dataset: Make, judge: Any, sound: Any, audits: dict[str, Audit]) -> Audit:
    if "sound" not in audits:
        audits["sound"] = judge(make_dataset(sound), Validate(max_quarantined_share=0.0))
    return audits["sound"]


@pytest.fixture
def with_damage(make_dataset: Make, judge: Any, sound: Any, audits: dict[str, Audit]) -> Audit:
    """Image 5 cannot be read; captions 9 and 10 are its own."""
    if "damage" not in audits:
        audits["damage"] = judge(make_dataset([*sound, ("train", b"text")]))
    return audits["damage"]


UNUSABLE_CAPTIONS = [
    (None, "null"),
    ("", "empty"),
    (" \t\n ", "empty"),
    ("x" * 10_000, "10000 characters, more than 1000"),
    ("🤗🐕", "without a letter"),
    ("12 - 34!", "without a letter"),
    ("nan", "'nan' stands for a missing value"),
    (" None ", "'None' stands for a missing value"),
]
SCRIPTS = ["כלב רץ בשדה", "कुत्ता", "一只狗", "a 🐕", "x" * 1000, "ß", "None of them", "nano"]


@pytest.fixture
def of_captions(make_dataset: Make, judge: Any, sound: Any, audits: dict[str, Audit]) -> Audit:
    """Captions 1 and 2 are of image 1, of image 2 all but the third are unusable, those of image 3 are usable."""
    if "captions" not in audits:
        captions = {2: ["a dog", *(caption for caption, _ in UNUSABLE_CAPTIONS)], 3: SCRIPTS}
        data = make_dataset(sound, captions=captions | {4: ["  a dog\n", "a dog MARK"]})
        path = data / "captions.json"
        path.write_text(path.read_text().replace("MARK", "\\ud83d"))
        audits["captions"] = judge(data)
    return audits["captions"]


@pytest.fixture
def of_images(make_dataset: Make, judge: Any, sound: Any, photo: Photo, audits: dict[str, Audit]) -> Audit:
    """None of the images from 5 on is usable."""
    if "images" not in audits:
        images = [
            ("train", photo(9, size=(31, 64))),
            ("train", photo(10, size=(400, 40))),
            ("train", None),
            (None, photo(11)),
            (None, b""),
            ("train", photo(12)),
            ("train", photo(13)),
        ]
        audits["images"] = judge(make_dataset([*sound, *images], captions={10: [], 11: ["", None]}))
    return audits["images"]


def reasons(result: Audit) -> dict[tuple[str, int], str]:
    table = result.quarantine
    return {
        (kind, int(row)): reason for kind, row, reason in zip(table["kind"], table["id"], table["reason"], strict=True)
    }


def change_dataset(table: str, index: int, **fields: Any) -> Callable[[Any], None]:
    return lambda dataset: getattr(dataset, table)[index].update(fields)


def test_a_sound_dataset_is_accepted_as_a_whole(of_sound: Audit) -> None:
    result = of_sound
    assert result.failures == []
    assert result.summary["success"]
    assert result.manifest["image_id"].tolist() == [1, 2, 3, 4]
    assert result.captions["image_id"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(result.quarantine) == 0
    assert result.summary["images"]["per_split"] == {"train": 2, "val": 2}
    assert result.summary["captions"]["per_split"] == {"train": 4, "val": 4}


def test_tables_have_the_types_that_preprocess_expects(of_sound: Audit) -> None:
    types = of_sound.manifest.dtypes.astype(str).to_dict()
    assert {name: types[name] for name in ("image_id", "offset", "bytes", "width", "height")} == {
        "image_id": "int64",
        "offset": "int64",
        "bytes": "int64",
        "width": "int32",
        "height": "int32",
    }
    assert list(of_sound.captions.columns) == ["caption_id", "image_id", "caption"]


@pytest.mark.parametrize(("place", "reason"), [(place, reason) for place, (_, reason) in enumerate(UNUSABLE_CAPTIONS)])
def test_an_unusable_caption_is_left_out_with_its_reason(of_captions: Audit, place: int, reason: str) -> None:
    assert reason in reasons(of_captions)["caption", 4 + place]
    assert 4 + place not in of_captions.captions["caption_id"].tolist()


def test_only_unusable_captions_are_left_out(of_captions: Audit) -> None:
    assert of_captions.failures == []
    assert list(reasons(of_captions)) == [("caption", 4 + place) for place in range(len(UNUSABLE_CAPTIONS))]
    assert len(of_captions.manifest) == 4


@pytest.mark.parametrize("caption", SCRIPTS)
def test_any_script_is_a_caption(of_captions: Audit, caption: str) -> None:
    assert caption in of_captions.captions["caption"].tolist()


def test_captions_are_stored_without_surrounding_blanks(of_captions: Audit) -> None:
    assert of_captions.captions["caption"].tolist()[-2] == "a dog"


def test_half_a_surrogate_pair_becomes_a_question_mark(of_captions: Audit) -> None:
    assert of_captions.captions["caption"].tolist()[-1] == "a dog ?"


def test_a_damaged_image_is_left_out_together_with_its_captions(with_damage: Audit) -> None:
    assert with_damage.failures == []
    assert "not an image" in reasons(with_damage)["image", 5]
    assert reasons(with_damage)["caption", 9] == reasons(with_damage)["caption", 10] == LEFT_OUT
    assert with_damage.manifest["image_id"].tolist() == [1, 2, 3, 4]


def test_the_quarantine_names_the_file_as_it_was_imported(with_damage: Audit) -> None:
    assert with_damage.quarantine["file"][0] == "photos/5.png"
    assert with_damage.quarantine["split"][0] == "train"


@pytest.mark.parametrize(
    ("image", "reason"),
    [(5, "31×64 pixels, a side is shorter than 32"), (6, "400×40 pixels, one side more than 5 times")],
)
def test_images_of_bad_proportions_are_left_out(of_images: Audit, image: int, reason: str) -> None:
    assert reason in reasons(of_images)["image", image]


def test_a_missing_image_is_left_out(of_images: Audit) -> None:
    assert "missing" in reasons(of_images)["image", 7]


def test_an_image_without_a_split_is_left_out(of_images: Audit) -> None:
    assert "no split" in reasons(of_images)["image", 8]


@pytest.mark.parametrize("image", [10, 11])
def test_an_image_without_a_usable_caption_is_left_out(of_images: Audit, image: int) -> None:
    assert reasons(of_images)["image", image] == "no usable caption"


def test_images_that_are_left_out_are_no_failure(of_images: Audit) -> None:
    assert of_images.failures == []
    assert of_images.manifest["image_id"].tolist() == [1, 2, 3, 4]


def test_several_reasons_are_all_given(of_images: Audit) -> None:
    assert reasons(of_images)["image", 9] == "empty file; captions.json gives it no split"


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


def test_the_summary_names_for_each_expectation_the_rows_that_break_it(with_damage: Audit) -> None:
    (broken,) = (item for item in with_damage.summary["expectations"] if not item["success"])
    assert (broken["table"], broken["expectation"], broken["column"]) == (
        "images",
        "ExpectColumnValuesToBeNull",
        "damage",
    )
    assert broken["failed"] == 1
    assert broken["examples"] == ["image 5 (photos/5.png): not an image, or not of a known format"]
