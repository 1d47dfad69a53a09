"""Filters compare attributes with values of their own type."""

from __future__ import annotations

import pyarrow as pa
import pytest

from diptych.serving.filters import Filter, FilterError, matching, parse_filter

ATTRIBUTES = pa.table(
    {
        "year": [2019, 2020, None, 2021],
        "folder": ["cats", "dogs", "cats; DROP TABLE", "it's"],
        "sharp": [True, False, True, None],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("year>=2020", [1, 3]),
        ("year=2020", [1]),
        ("year==2020", [1]),
        ("year != 2020", [0, 3]),
        ("year<2019.5", [0]),
        ("folder=cats", [0]),
        ("folder=cats; DROP TABLE", [2]),
        ("folder = it's", [3]),
        ("folder>=dogs", [1, 3]),
        ("sharp=true", [0, 2]),
        ("sharp!=true", [1]),
    ],
)
def test_a_filter_is_a_typed_comparison(text: str, rows: list[int]) -> None:
    mask = matching([parse_filter(text)], ATTRIBUTES)
    assert mask is not None
    assert mask.nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ("=1152921504606846977", [1]),
        (">=1152921504606846976.5", [0, 1]),
        ("<1" + "0" * 400, [0, 1]),
        (">-1e999", [0, 1]),
    ],
)
def test_large_numbers_lose_no_digit_and_are_no_trouble(value: str, rows: list[int]) -> None:
    numbers = pa.table({"id": [1152921504606846976, 1152921504606846977]})
    mask = matching([parse_filter("id" + value)], numbers)
    assert mask is not None
    assert mask.nonzero()[0].tolist() == rows


def test_all_filters_have_to_pass_and_none_is_no_filter() -> None:
    mask = matching([parse_filter("sharp=true"), parse_filter("folder=cats")], ATTRIBUTES)
    assert mask is not None
    assert mask.tolist() == [True, False, False, False]
    assert matching([], ATTRIBUTES) is None


@pytest.mark.parametrize("text", ["", "year", "=3", "year 2020", "1year=3", "a b=c"])
def test_what_is_no_comparison_is_refused(text: str) -> None:
    with pytest.raises(FilterError, match="is no comparison such as folder=cats"):
        parse_filter(text)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (Filter("month", "=", 3), "no attribute 'month'; it has year, folder, sharp"),
        (Filter("year", "=", "new"), "The attribute year is a number, and not 'new'"),
        (Filter("year", "=", True), "The attribute year is a number, and not 'True'"),
        (Filter("sharp", "=", "maybe"), "The attribute sharp is true or false, and not 'maybe'"),
    ],
)
def test_a_filter_that_does_not_fit_is_refused(one: Filter, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        matching([one], ATTRIBUTES)


def test_a_collection_without_attributes_says_so() -> None:
    with pytest.raises(FilterError, match="it has none"):
        matching([Filter("year", "=", 3)], pa.table({}))
