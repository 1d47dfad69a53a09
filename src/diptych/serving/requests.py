"""Steps that the API and the page share: checking a request, and asking the worker."""

from __future__ import annotations

import asyncio
import unicodedata
from threading import Lock

from fastapi import UploadFile
from PIL import Image

from diptych.data.images import ImageError, open_image
from diptych.errors import DiptychError
from diptych.serving.filters import FilterError
from diptych.serving.following import Following
from diptych.serving.index import IndexGoneError
from diptych.serving.measures import Measures
from diptych.serving.pictures import model_pixels
from diptych.serving.sources import SourceError
from diptych.serving.worker import Answer, BusyError, NotInIndexError, Query, UnavailableError, Worker, require_served

LONGEST_TEXT = 1_000
"""Characters of a query; the model reads far fewer."""
UPLOAD_PIXELS = 30_000_000
"""Largest width × height of an uploaded image."""


_DECODING = Lock()
_UNREADABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of control characters, halves of characters, and line and paragraph separators."""


class RequestError(DiptychError):
    """A request that cannot be answered as it is."""


_STATUS = {
    FilterError: 422,
    NotInIndexError: 404,
    SourceError: 404,
    BusyError: 503,
    IndexGoneError: 503,
    UnavailableError: 503,
}


async def ask(searching: Worker, measures: Measures, query: Query) -> Answer:
    """Return the worker's answer to a query, and count its steps."""
    answer = await asyncio.wrap_future(searching.submit(query))
    measures.observe(answer)
    return answer


async def decode_upload(image: UploadFile, following: Following) -> Image.Image:
    """Return an uploaded image in the size that the model reads, so that waiting ones take little memory.

    Raises:
        RequestError: it is no image, or too large.
    """
    content = await image.read()
    preprocessing = require_served(following).searcher.retriever.preprocessing

    def decode() -> Image.Image:
        # One at a time: a decoded image takes a hundred times the memory of its file.
        with _DECODING:
            return model_pixels(open_image(content, UPLOAD_PIXELS), preprocessing)

    try:
        return await asyncio.to_thread(decode)
    except ImageError as error:
        raise RequestError(f"The upload is no image that can be read: {error}.") from None


def status_of(error: DiptychError) -> int:
    """Return the HTTP status of the answer to an error."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 400)


def headers_of(status: int) -> dict[str, str]:
    """Return headers of an answer with this status: when to ask again, where that helps."""
    return {"Retry-After": "1"} if status == 503 else {}


def clean_text(text: str) -> str:
    """Return a query's text with blanks in place of control characters.

    Raises:
        RequestError: nothing is left, or it is too long.
    """
    if len(text) > LONGEST_TEXT:
        raise RequestError(f"The text has {len(text):,} characters; at most {LONGEST_TEXT:,} are read.")
    clean = "".join(" " if unicodedata.category(character) in _UNREADABLE else character for character in text).strip()
    if not clean:
        raise RequestError("The text is empty: write what the image shows.")
    return clean
