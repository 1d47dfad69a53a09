"""Routes by which users mark results as right or wrong."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode, urlsplit

from fastapi import Depends, FastAPI, Form, Header
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from diptych.errors import printable
from diptych.serving.feedback import Mark, Marks
from diptych.serving.following import Following
from diptych.serving.requests import LONGEST_TEXT, RequestError, clean_text
from diptych.serving.worker import require_row, require_served


class MarkRequest(BaseModel):
    """A user's judgement of one result."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[str, Field(max_length=LONGEST_TEXT)]
    hash: Annotated[str, Field(max_length=64)]
    right: bool
    who: Annotated[str, Field(max_length=100)] = ""


def add_feedback(app: FastAPI, following: Following, marks: Marks) -> None:
    """Add the routes to an application."""

    async def keep(request: MarkRequest) -> None:
        served = require_served(following)
        require_row(served, request.hash)
        mark = Mark(
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            query=clean_text(request.query),
            hash=request.hash,
            right=request.right,
            collection=served.index.collection,
            model=served.model.title,
            index_version=served.index_version,
            who=printable(request.who),
        )
        await asyncio.to_thread(marks.add, mark)

    def refuse_others(
        sec_fetch_site: Annotated[str, Header()] = "none",
        origin: Annotated[str, Header()] = "",
        host: Annotated[str, Header()] = "",
    ) -> None:
        # Browsers say where a form comes from; programs say nothing.
        if sec_fetch_site not in ("same-origin", "none") or (origin and urlsplit(origin).netloc != host):
            raise RequestError("Marks are taken from the search page alone.")

    @app.post("/feedback", tags=["feedback"], status_code=204, dependencies=[Depends(refuse_others)])
    async def mark(request: MarkRequest) -> None:
        """Mark a result of a text as right or wrong."""
        await keep(request)

    @app.post("/marks", include_in_schema=False, dependencies=[Depends(refuse_others)])
    async def mark_on_page(request: Annotated[MarkRequest, Form()]) -> Response:
        await keep(request)
        return RedirectResponse("/?" + urlencode({"q": request.query}), status_code=303)
