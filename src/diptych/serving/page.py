"""The search page: HTML that the server renders, and a script that only fetches parts of it sooner."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
from fastapi import FastAPI, File, Request, UploadFile
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from diptych.errors import DiptychError
from diptych.report.highlights import Highlighted, highlighter
from diptych.retrieval.calibration import GOOD
from diptych.retrieval.embedding import TokenStates
from diptych.serving.filters import Filter
from diptych.serving.following import Following, Served
from diptych.serving.index import Record
from diptych.serving.measures import Measures
from diptych.serving.requests import ask, clean_text, decode_upload, headers_of, status_of
from diptych.serving.worker import Query, Worker, require_row, require_served

SHOWN = 24
"""Results of a page."""
_MOST_CHOICES = 40
_DEEPEST = 10_000


class Facet(NamedTuple):
    """An attribute that the page offers to filter by: by one of its values, or by a range."""

    name: str
    choices: list[str]
    """Its values; empty where it is a number."""


class Search(NamedTuple):
    """Search that the address of a page asks for."""

    text: str
    like: str
    offset: int
    chosen: dict[str, str]
    """Values of the form's filter fields, by the names of the fields."""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Search:
        """Return what the query string of an address asks for."""
        offset = values.get("offset", "0")
        chosen = {name: value for name, value in values.items() if name.partition(".")[0] in _OPERATORS and value}
        depth = min(int(offset[:9]), _DEEPEST) if offset.isascii() and offset.isdigit() else 0
        return cls(values.get("q", "").strip(), values.get("like", ""), depth, chosen)

    @property
    def filters(self) -> list[Filter]:
        """The filters that are chosen."""
        split = ((*name.partition("."), value) for name, value in self.chosen.items())
        return [Filter(attribute, _OPERATORS[kind], value) for kind, _, attribute, value in split]

    def query(self, **changes: Any) -> str:
        """Return the query string of this search with some fields changed."""
        fields = {"q": self.text, "like": self.like, "offset": self.offset or "", **self.chosen, **changes}
        return urlencode({name: value for name, value in fields.items() if value})

    def address(self, **changes: Any) -> str:
        """Return the address of this search with some fields changed."""
        return "/?" + self.query(**changes)


_OPERATORS: dict[str, Any] = {"is": "=", "min": ">=", "max": "<="}
"""Operators by the first part of a field's name, such as min.year."""


class Page:
    """The pages of a server."""

    def __init__(self, following: Following, searching: Worker, measures: Measures, *, with_marks: bool) -> None:
        self._following, self._searching, self._measures = following, searching, measures
        self._with_marks = with_marks
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def add_to(self, app: FastAPI) -> None:
        """Add the routes of the pages to an application."""

        @app.get("/", include_in_schema=False, response_class=HTMLResponse)
        async def page(request: Request, fragment: bool = False, interim: bool = False) -> Response:
            return await self._search(Search.of(request.query_params), fragment, interim=interim)

        @app.post("/", include_in_schema=False, response_class=HTMLResponse)
        async def page_of_upload(
            request: Request, image: Annotated[UploadFile, File()], fragment: bool = False
        ) -> Response:
            return await self._search(Search.of(request.query_params), fragment, image)

        @app.get("/result/{digest}", include_in_schema=False, response_class=HTMLResponse)
        async def result(request: Request, digest: str) -> Response:
            return await self._result(Search.of(request.query_params), digest)

    async def _search(
        self, search: Search, fragment: bool, image: UploadFile | None = None, *, interim: bool = False
    ) -> Response:
        """Return the page of a search, or with `fragment` its results alone; `interim` while its text is typed."""
        answer, records, problem, status, browsed = None, [], "", 200, 0
        try:
            served = require_served(self._following)
            query = await self._query(search, image, interim)
            if query is not None:
                answer = await ask(self._searching, self._measures, query)
                records = answer.served.index.records(answer.hits.rows)
            else:
                rows = served.searcher.allowed(search.filters)
                records, browsed = served.index.records(rows[: SHOWN // 2]), len(rows)
        except DiptychError as error:
            problem, status = str(error), status_of(error)
        return self._render(
            "results.html.j2" if fragment else "search.html.j2",
            status,
            search=search,
            answer=answer,
            records=records,
            problem=problem,
            browsed=browsed,
            uploaded=image is not None,
            served=self._following.served,
            facets=[] if fragment else _facets(self._following.served),
            shown=SHOWN,
            deepest=_DEEPEST,
            example=_example(self._following.served),
            good=GOOD,
            with_marks=self._with_marks,
        )

    async def _query(self, search: Search, image: UploadFile | None, interim: bool) -> Query | None:
        """Return the query of a search; None where it asks for nothing."""
        fields: dict[str, Any] = {"k": SHOWN, "offset": search.offset, "filters": search.filters}
        if image is not None:
            return Query(**fields, image=await decode_upload(image, self._following))
        if search.like:
            return Query(**fields, like=search.like)
        return Query(**fields, text=clean_text(search.text), interim=interim) if search.text else None

    async def _result(self, search: Search, digest: str) -> Response:
        """Return the page of one image, with what moved its match with the text of the search."""
        try:
            served = require_served(self._following)
            row = require_row(served, digest)
            seen = await self._highlight(row, clean_text(search.text)) if search.text else None
        except DiptychError as error:
            status = status_of(error)
            return self._render("error.html.j2", status, search=search, problem=str(error))
        record = served.index.records(np.array([row]))[0]
        return self._render(
            "result.html.j2",
            200,
            search=search,
            record=record,
            served=served,
            words=seen.words if seen else [],
            heat=_heat(seen.heat) if seen else "",
            area=_area(served, record),
        )

    async def _highlight(self, row: int, text: str) -> Highlighted | None:
        """Return what moved the match of an image; the worker computes it, like all that needs the model."""
        return await asyncio.wrap_future(self._searching.compute(lambda served: _highlights(served, row, text)))

    def _render(self, template: str, status: int, **values: Any) -> HTMLResponse:
        page = self._templates.get_template(template).render(title_of=title_of, **values)
        return HTMLResponse(page, status, headers_of(status))


def title_of(record: Record) -> str:
    """Return the words that stand for an image: its first caption, or else its name."""
    return record.captions[0] if record.captions else record.path


def _example(served: Served | None) -> str:
    """Return a text that can be searched for: the caption of the first image, where it has one."""
    first = served.index.records(np.array([0]))[0] if served else None
    return first.captions[0] if first and first.captions else "two dogs in the snow"


def _facets(served: Served | None) -> list[Facet]:
    """Return the attributes that can be filtered by; texts only where they have few values."""
    facets = []
    for name, values in (served.index.values if served else {}).items():
        if values is None:
            facets.append(Facet(name, []))
        elif 1 < len(values) <= _MOST_CHOICES:
            facets.append(Facet(name, values))
    return facets


def _highlights(served: Served, row: int, text: str) -> Highlighted | None:
    """Return what words and places moved the match of an image; None where the fusion does not re-rank."""
    import torch

    if not served.searcher.reranks:
        return None
    retriever = served.searcher.retriever
    encoded = retriever.encode_texts([text], tokens=True)
    if encoded.tokens is None or encoded.offsets is None:
        return None
    grid = torch.from_numpy(served.index.grids(np.array([row])).astype(np.float32))
    highlight = highlighter(retriever, TokenStates(grid, encoded.tokens, encoded.offsets), [text])
    return highlight(0, 0) if highlight else None


def _heat(strengths: NDArray[np.float64]) -> str:
    """Return an overlay as a data address: the stronger a place, the clearer; others are darkened."""
    alpha = np.uint8(170 * (1 - np.clip(strengths, 0, 1)))
    black = np.zeros_like(alpha)
    content = io.BytesIO()
    Image.fromarray(np.stack([black, black, black, alpha], axis=-1), "RGBA").save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _area(served: Served, record: Record) -> Sequence[float]:
    """Return left, top, width and height, in percent of the image, of what the model sees of it."""
    if served.searcher.retriever.preprocessing.resize == "stretch":
        return 0, 0, 100, 100
    side = min(record.width, record.height)
    width, height = 100 * side / record.width, 100 * side / record.height
    return (100 - width) / 2, (100 - height) / 2, width, height
