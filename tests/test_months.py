"""The drops of `benchmarks/year.py` are what they are called."""

import sys
from pathlib import Path

import pytest

from diptych.data.images import ImageError, inspect_image
from diptych.data.images_folder import ImagesFolder
from diptych.data.importing import import_table
from diptych.errors import DiptychError

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from months.drops import YEAR, drop, make_pictures

pytestmark = pytest.mark.slow

NORMAL, *_ = YEAR
CORRUPT, IDENTICAL, DRIFTED, WRONG, DAMAGED = (
    next(month for month in YEAR if month.kind == kind)
    for kind in ("corrupt", "identical", "drifted", "wrong captions", "damaged table")
)


def bring(tmp_path: Path, month):
    """Imports the month's drop into a dataset."""
    table = drop(tmp_path / "inbox", month)
    return import_table(tmp_path / "data", table, ImagesFolder(table.parent))


def test_every_month_of_the_year_has_another_drop_and_its_number():
    assert [month.number for month in YEAR] == list(range(1, 13))
    assert len({month.name for month in YEAR}) == 12


def test_a_drop_is_taken_whole_and_the_same_again_brings_nothing(tmp_path):
    (again,) = (month for month in YEAR if make_pictures(month) == make_pictures(IDENTICAL) and month != IDENTICAL)

    first, second = bring(tmp_path, again), bring(tmp_path, IDENTICAL)

    assert (first.images_added, first.captions_added) == (50, 250)
    assert (second.images_added, second.captions_added) == (0, 0)


def test_of_a_corrupt_drop_a_third_does_not_open():
    bad = 0
    for picture in (pictures := make_pictures(CORRUPT)):
        try:
            inspect_image(picture.content, 10**6)
        except ImageError:
            bad += 1
    assert bad == pytest.approx(len(pictures) / 3, abs=1)


def test_a_damaged_table_is_no_table(tmp_path):
    with pytest.raises(DiptychError, match="too few or too many columns"):
        bring(tmp_path, DAMAGED)


def test_wrong_captions_are_those_of_other_pictures():
    told = {picture.name: picture.captions for picture in make_pictures(WRONG)}
    right = {picture.name: picture.captions for picture in make_pictures(WRONG, spoilt=False)}

    assert sorted(told.values()) == sorted(right.values())
    assert not any(told[name] == captions for name, captions in right.items())


def test_drifted_captions_have_words_that_others_have_not():
    words = [{word for one in make_pictures(month) for text in one.captions for word in text.split()} for month in YEAR]
    strange = words[DRIFTED.number - 1] - words[NORMAL.number - 1]

    assert {"rot", "kreis", "hintergrund"} <= strange
