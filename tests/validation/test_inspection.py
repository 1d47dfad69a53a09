"""Verdicts of Great Expectations, and Data Docs that are the same bytes for the same results."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pandas as pd
import pytest

from diptych.validation.inspection import Inspection
from diptych.validation.suites import Promise

TABLE = pd.DataFrame({"number": [1, 2, 2, None], "word": ["a", "b", None, "d"], "unused": [object()] * 4})


def reason(row: pd.Series) -> str:
    return "bad"


BETWEEN = Promise("ExpectColumnValuesToBeBetween", "number", "row", reason, {"min_value": 2})
UNIQUE = Promise("ExpectColumnValuesToBeUnique", "number", "dataset", reason)
NOT_NULL = Promise("ExpectColumnValuesToNotBeNull", "word", "row", reason)
CONTAINS = Promise("ExpectColumnDistinctValuesToContainSet", "word", "dataset", reason, {"value_set": ["a", "z"]})


def test_verdicts_come_in_the_order_of_the_promises_with_the_rows_that_break_them(tmp_path: Path) -> None:
    verdicts = Inspection(tmp_path).judge("things", TABLE, [BETWEEN, UNIQUE, NOT_NULL])
    assert [verdict.promise for verdict in verdicts] == [BETWEEN, UNIQUE, NOT_NULL]
    assert [verdict.rows for verdict in verdicts] == [[0], [1, 2], [2]]
    assert not any(verdict.success for verdict in verdicts)


def test_a_kept_promise_succeeds(tmp_path: Path) -> None:
    (verdict,) = Inspection(tmp_path).judge("things", TABLE.iloc[1:], [BETWEEN])
    assert verdict.success
    assert verdict.rows == []


def test_values_that_the_column_lacks_are_listed(tmp_path: Path) -> None:
    (verdict,) = Inspection(tmp_path).judge("things", TABLE, [CONTAINS])
    assert not verdict.success
    assert verdict.missing == ["z"]


def test_an_empty_table_breaks_only_what_must_be_there(tmp_path: Path) -> None:
    verdicts = Inspection(tmp_path).judge("things", TABLE.iloc[:0], [BETWEEN, UNIQUE, NOT_NULL, CONTAINS])
    assert [verdict.success for verdict in verdicts] == [True, True, True, False]


def test_an_expectation_that_cannot_be_evaluated_is_an_error(tmp_path: Path) -> None:
    wrong = Promise("ExpectColumnValuesToBeBetween", "word", "row", reason, {"min_value": 2})
    with pytest.raises(RuntimeError, match=r"things\.word"):
        Inspection(tmp_path).judge("things", TABLE, [wrong])


def write_docs(folder: Path) -> dict[str, bytes]:
    inspection = Inspection(folder)
    inspection.judge("things", TABLE, [BETWEEN, UNIQUE, NOT_NULL, CONTAINS])
    inspection.judge("others", TABLE, [NOT_NULL])
    inspection.write_docs()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_results_give_equal_docs_wherever_they_are_written(tmp_path: Path) -> None:
    assert write_docs(tmp_path / "one") == write_docs(tmp_path / "two")


def test_the_docs_hold_a_page_a_column_and_an_index(tmp_path: Path) -> None:
    pages = [name for name in write_docs(tmp_path) if name.endswith(".html")]
    assert "index.html" in pages
    columns = {promise.column for promise in (BETWEEN, UNIQUE, NOT_NULL, CONTAINS)}
    assert sum("validations/things/" in page for page in pages) == len(columns) > 1
    assert sum("validations/others/" in page for page in pages) == 1


def test_the_docs_link_to_pages_that_exist(tmp_path: Path) -> None:
    files = write_docs(tmp_path)
    page = next(name for name in files if "validations/things/" in name)
    assert page.encode() in files["index.html"].replace(b"%20", b" ")


def test_the_docs_show_a_logo_that_lies_beside_them(tmp_path: Path) -> None:
    files = write_docs(tmp_path)
    page = next(name for name in files if "validations/things/" in name)
    (logo,) = set(re.findall(r'src="([^"]*logo-long[^"]*)"', files[page].decode()))
    assert (tmp_path / page).parent.joinpath(logo).resolve().is_file()


def test_great_expectations_does_not_chat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        write_docs(tmp_path)
    assert caplog.text == ""
