"""The search service: an API for programs, and a page for people."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from diptych import __version__
from diptych.data.images import open_image
from diptych.errors import DiptychError
from diptych.retrieval.calibration import GOOD
from diptych.retriever import MAX_PIXELS
from diptych.serving import worker
from diptych.serving.feedback import Marks
from diptych.serving.filters import Filter, parse_filter
from diptych.serving.following import Following, Served
from diptych.serving.limits import LimitedBody, RequiredToken
from diptych.serving.marking import add_feedback
from diptych.serving.measures import Measures
from diptych.serving.page import Page
from diptych.serving.pictures import to_jpeg
from diptych.serving.requests import (
    LONGEST_TEXT,
    RequestError,
    ask,
    clean_text,
    decode_upload,
    headers_of,
    status_of,
)
from diptych.serving.schemas import MOST_RESULTS, Result, SearchRequest, SearchResponse
from diptych.serving.worker import Answer, Worker, require_row, require_served

_SHOWN_SIDE = 1_600
"""Longest side in pixels of an image that is shown by itself."""
_SAVE_EVERY = 60.0
"""Seconds between two writings of the profile of queries."""
_CACHED = {"Cache-Control": "private, max-age=86400, immutable"}
_SAFE = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def make_app(
    following: Following,
    *,
    token: str | None = None,
    limit: int = 128,
    refresh_every: float | None = 5.0,
    marks: Marks | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """Return the ASGI application.

    Args:
        following: what is served.
        token: token that each request has to bear; none by default.
        limit: number of searches that may wait; to more of them the answer is 503.
        refresh_every: seconds between two looks at the registry and the store; None for none.
        marks: where users' marks on results are kept, with their queries; None to keep none.
        hosts: names by which the server may be asked; None for any.
    """
    searching = Worker(following, limit)
    measures = Measures(following, searching)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_refresh(following, refresh_every)) if refresh_every else None
        yield
        if task:
            task.cancel()
        await asyncio.to_thread(searching.close)
        await asyncio.to_thread(following.save_queries)

    app = FastAPI(title="diptych search", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(LimitedBody)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    if token:
        app.add_middleware(RequiredToken, token=token)
    _add_errors(app)
    _add_observation(app, measures)
    _add_service(app, following, measures)
    _add_search(app, following, searching, measures)
    _add_images(app, following)
    if marks is not None:
        add_feedback(app, following, marks)
    Page(following, searching, measures, with_marks=marks is not None).add_to(app)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    return app


async def _refresh(following: Following, every: float) -> None:
    while True:
        await asyncio.to_thread(following.refresh)
        await asyncio.to_thread(following.save_queries, _SAVE_EVERY)
        await asyncio.sleep(every)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(DiptychError)
    async def explain(_: Request, error: DiptychError) -> JSONResponse:
        status = status_of(error)
        return JSONResponse({"detail": _encodable(str(error))}, status, headers_of(status))

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> Response:
        # The input itself may be long, and may contain what JSON cannot.
        problems = [{"loc": problem["loc"], "msg": problem["msg"]} for problem in error.errors()]
        # In ASCII, JSON can carry halves of characters too.
        return Response(json.dumps({"detail": problems}), 422, media_type="application/json")


def _add_observation(app: FastAPI, measures: Measures) -> None:
    @app.middleware("http")
    async def observe(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            response = await answer(request)
        except Exception:
            measures.count(_path_of(request), 500)
            raise
        measures.count(_path_of(request), response.status_code)
        for name, value in _SAFE.items():
            response.headers.setdefault(name, value)
        return response


def _path_of(request: Request) -> str:
    """Return the path of the route, so that hashes and typing errors make no metric each."""
    return str(getattr(request.scope.get("route"), "path", "other"))


def _encodable(text: str) -> str:
    """Return a text with ? in place of halves of characters."""
    return text.encode("utf-8", "replace").decode()


def _add_service(app: FastAPI, following: Following, measures: Measures) -> None:
    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"])
    async def readyz(response: Response) -> dict[str, Any]:
        """Say whether searches are answered, and why a newer model or index is not served."""
        response.status_code = 200 if following.served else 503
        return {"ready": following.served is not None, "problem": following.problem or None}

    @app.get("/version", tags=["service"])
    async def version() -> dict[str, Any]:
        """Return the model and the index that answer now."""
        served = require_served(following)
        return {**_identity(served), "images": len(served.index), "diptych": __version__}

    @app.get("/metrics", tags=["service"])
    async def metrics() -> Response:
        """Return measures for Prometheus."""
        # It may take half a second, in which searches are answered.
        drift = await asyncio.to_thread(measures.query_drift)
        return Response(measures.text(drift), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_search(app: FastAPI, following: Following, searching: Worker, measures: Measures) -> None:
    async def respond(query: worker.Query, min_probability: float = GOOD) -> SearchResponse:
        answer = await ask(searching, measures, query)
        return _response(answer, query.offset, min_probability)

    @app.get("/search", tags=["search"])
    async def search(
        text: Annotated[str | None, Query(max_length=LONGEST_TEXT)] = None,
        like: Annotated[str | None, Query(description="Hash of an image of the collection.")] = None,
        k: Annotated[int, Query(ge=1, le=MOST_RESULTS)] = 10,
        offset: Annotated[int, Query(ge=0, le=10**6)] = 0,
        filter: Annotated[list[str], Query(max_length=20, description="Such as folder=cats or year>=2010.")] = [],  # noqa: B006
        rerank: bool = True,
        min_probability: Annotated[float, Query(ge=0, le=1, description="From this on a match is good.")] = GOOD,
    ) -> SearchResponse:
        """Find images by a text, or by an image of the collection."""
        return await respond(
            _query(text, like, k, offset, [parse_filter(one) for one in filter], rerank), min_probability
        )

    @app.post("/search", tags=["search"])
    async def search_by_json(request: SearchRequest) -> SearchResponse:
        """Find images by a text, or by an image of the collection."""
        filters = [Filter(one.attribute, one.operator, one.value) for one in request.filters]
        query = _query(request.text, request.like, request.k, request.offset, filters, request.rerank)
        return await respond(query, request.min_probability)

    @app.post("/search/image", tags=["search"])
    async def search_by_image(
        image: Annotated[UploadFile, File(description="JPEG, PNG, GIF, WebP, BMP or TIFF.")],
        k: Annotated[int, Form(ge=1, le=MOST_RESULTS)] = 10,
        offset: Annotated[int, Form(ge=0, le=10**6)] = 0,
        filter: Annotated[list[str], Form(max_length=20)] = [],  # noqa: B006
    ) -> SearchResponse:
        """Find images that are like an uploaded one."""
        filters = [parse_filter(one) for one in filter]
        pixels = await decode_upload(image, following)
        return await respond(worker.Query(k=k, offset=offset, filters=filters, image=pixels))


def _add_images(app: FastAPI, following: Following) -> None:
    @app.get("/images/{digest}", tags=["search"], response_class=Response)
    async def image(digest: str, size: Annotated[str, Query(pattern="^(thumbnail|full)$")] = "thumbnail") -> Response:
        """Return an image of the collection as JPEG: a thumbnail, or `full` with at most 1,600 pixels a side."""
        return Response(
            await asyncio.to_thread(_jpeg, require_served(following), digest, size),
            media_type="image/jpeg",
            headers=_CACHED,
        )


def _query(
    text: str | None, like: str | None, k: int, offset: int, filters: list[Filter], rerank: bool
) -> worker.Query:
    if (text is None) == (like is None):
        raise RequestError("Give either `text` or `like`, the hash of an image of the collection.")
    clean = None if text is None else clean_text(text)
    return worker.Query(k=k, offset=offset, filters=filters, rerank=rerank, text=clean, like=like)


def _response(answer: Answer, offset: int, min_probability: float) -> SearchResponse:
    served, hits = answer.served, answer.hits
    started = time.perf_counter()
    records = served.index.records(hits.rows)
    results = [
        Result(rank=rank, score=float(score), **record._asdict())
        for rank, (score, record) in enumerate(zip(hits.scores, records, strict=True), start=offset + 1)
    ]
    seconds = {**answer.seconds, "reading": time.perf_counter() - started}
    return SearchResponse(
        **_identity(served),
        total=hits.total,
        reranked=hits.reranked,
        probability=hits.probability,
        good_match=None if hits.probability is None else hits.probability >= min_probability,
        milliseconds={step: round(1000 * value, 3) for step, value in seconds.items()},
        results=results,
    )


def _identity(served: Served) -> dict[str, Any]:
    return {
        "model": served.model.title,
        "model_sha256": served.model.sha256,
        "index_version": served.index_version,
        "collection": served.index.collection,
    }


def _jpeg(served: Served, digest: str, size: str) -> bytes:
    row = require_row(served, digest)
    if size == "thumbnail":
        return served.index.thumbnail(row)
    content = served.index.original(served.index.records(np.array([row]))[0])
    return to_jpeg(open_image(content, MAX_PIXELS), _SHOWN_SIDE, 88)
