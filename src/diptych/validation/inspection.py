"""Inspection of tables by Great Expectations in memory, with Data Docs whose bytes depend on the results alone."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, cast

import pandas as pd

from diptych.validation.suites import Promise

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""Time of every run, since what a stage writes depends on its inputs alone."""

_LOGO = re.compile(r'src="https://great-expectations-web-assets[^"]*"')
_LOAD_TIME = re.compile(r"\d{8}T\d{6}\.\d{6}Z")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Verdict:
    """Judgement of one promise by Great Expectations.

    Attributes:
        table: name of the table.
        promise: the promise.
        success: whether the table keeps the promise.
        rows: indices of the rows that break the promise, in ascending order.
        missing: values that the column should have and does not have.
    """

    table: str
    promise: Promise
    success: bool
    rows: list[int]
    missing: list[Any]


class Inspection:
    """Great Expectations context in memory, whose results become Data Docs in the folder `docs`."""

    def __init__(self, docs: Path) -> None:
        # It logs its internals at level INFO during its import, and from one module at any time.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        import great_expectations as gx

        logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
        self._gx = gx
        self._docs = docs
        self._context = cast(Any, gx.get_context(mode="ephemeral"))
        self._context.variables.progress_bars = {"globally": False}
        for name in list(self._context.get_site_names()):
            self._context.delete_data_docs_site(name)
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())}
        site = {"class_name": "SiteBuilder", "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}}
        self._context.add_data_docs_site("diptych", {**site, "store_backend": store})
        self._source = self._context.data_sources.add_pandas("diptych")

    def judge(self, table: str, frame: pd.DataFrame, promises: list[Promise]) -> list[Verdict]:
        """Judge `promises` about `frame`; return the verdicts in the same order.

        `table` is the name in verdicts and Data Docs, which have a suite for each column: Great Expectations copies all
        columns of a suite for each of its expectations.

        Raises:
            RuntimeError: Great Expectations cannot evaluate an expectation.
        """
        verdicts: dict[int, Verdict] = {}
        for column in dict.fromkeys(promise.column for promise in promises):
            numbered = {number: promise for number, promise in enumerate(promises) if promise.column == column}
            results = self._run(f"{table}.{column}", frame[[column]].reset_index(drop=True), numbered)
            verdicts |= {number: _verdict(table, numbered[number], result) for number, result in results.items()}
        return [verdict for _, verdict in sorted(verdicts.items())]

    def _run(self, name: str, frame: pd.DataFrame, promises: dict[int, Promise]) -> dict[int, Any]:
        """Run promises as a suite with this name; return Great Expectations' results by the promises' numbers."""
        from great_expectations.core.run_identifier import RunIdentifier

        suite = self._context.suites.add(
            self._gx.ExpectationSuite(
                name=name,
                expectations=[self._expectation(promise, number) for number, promise in promises.items()],
            )
        )
        batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        definition = self._context.validation_definitions.add(
            self._gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        result = definition.run(
            batch_parameters={"dataframe": frame},
            result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False},
            run_id=RunIdentifier(run_name=name, run_time=_EPOCH),
        )
        # It would keep the column.
        self._source.delete_asset(name)
        # The results are not in the order of the expectations.
        return {item.expectation_config.meta["promise"]: item for item in result.results}

    def write_docs(self) -> None:
        """Write the Data Docs of all suites judged so far."""
        self._context.build_data_docs()
        for page in sorted(self._docs.rglob("*.html")):
            text = page.read_text(encoding="utf-8")
            page.write_text(
                _make_reproducible(text, "../" * (len(page.relative_to(self._docs).parts) - 1)), encoding="utf-8"
            )

    def _expectation(self, promise: Promise, number: int) -> Any:
        kind = getattr(self._gx.expectations, promise.expectation)
        return kind(column=promise.column, meta={"promise": number}, **promise.options)


def _verdict(table: str, promise: Promise, result: Any) -> Verdict:
    if errors := _errors(result.exception_info):
        raise RuntimeError(f"Great Expectations could not judge {table}.{promise.column}: {'; '.join(errors)}")
    details = result.result
    rows = [int(row) for row in details.get("unexpected_index_list") or ()]
    missing = details.get("partial_missing_list") or ()
    # Great Expectations has them in no fixed order.
    return Verdict(table, promise, bool(result.success), sorted(rows), sorted(missing, key=str))


def _errors(info: dict[str, Any]) -> list[str]:
    """Return the messages of exceptions that the expectation or one of its metrics raised."""
    infos = [info] if "raised_exception" in info else list(info.values())
    return [str(item["exception_message"]) for item in infos if item["raised_exception"]]


def _make_reproducible(page: str, root: str) -> str:
    """Return a page of the Data Docs without what differs from run to run: times and random names.

    The logo becomes a local file, so the page needs no network. `root` is the path from the page's folder to the docs.
    """
    page = _LOGO.sub(f'src="{root}static/images/logo-long.png"', page)
    page = _LOAD_TIME.sub(f"{_EPOCH:%Y%m%dT%H%M%S.%fZ}", page)
    numbers = count(1)
    names = {uuid: f"id-{next(numbers)}" for uuid in dict.fromkeys(_UUID.findall(page))}
    return _UUID.sub(lambda match: names[match[0]], page)
