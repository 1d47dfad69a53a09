"""What both the API and the page do with a request: check it, and ask the worker."""

from __future__ import annotations

import asyncio
import unicodedata

from fastapi import UploadFile
from PIL import Image

from diptych.data.images import ImageError, open_image
from diptych.errors import DiptychError
from diptych.serving.following import Following, Served
from diptych.serving.limits import BODY_BYTES
from diptych.serving.measures import Measures
from diptych.serving.worker import Answer, Query, UnavailableError, Worker

LONGEST_TEXT = 1_000
"""Characters of a query; the model reads far fewer."""
UPLOAD_PIXELS = 50_000_000
"""Largest width × height of an uploaded image."""


class RequestError(DiptychError):
    """A request that cannot be answered as it is."""


async def ask(searching: Worker, measures: Measures, query: Query) -> Answer:
    """Return the worker's answer to a query, and count its steps."""
    answer = await asyncio.wrap_future(searching.submit(query))
    measures.observe(answer)
    return answer


def require_served(following: Following) -> Served:
    """Return the model and the index that answer now.

    Raises:
        UnavailableError: there are none yet.
    """
    if following.served is None:
        raise UnavailableError(following.problem or "The model is being loaded.")
    return following.served


async def uploaded(image: UploadFile) -> Image.Image:
    """Return an uploaded image, decoded.

    Raises:
        RequestError: it is none, or too large.
    """
    content = await image.read()
    if len(content) > BODY_BYTES:
        raise RequestError(f"The image is larger than {BODY_BYTES:,} bytes.")
    try:
        return await asyncio.to_thread(open_image, content, UPLOAD_PIXELS)
    except ImageError as error:
        raise RequestError(f"The upload is no image that can be read: {error}.") from None


def readable(text: str) -> str:
    """Return a query's text with blanks in place of control characters.

    Raises:
        RequestError: nothing is left, or it is too long.
    """
    if len(text) > LONGEST_TEXT:
        raise RequestError(f"The text has {len(text):,} characters; at most {LONGEST_TEXT:,} are read.")
    clean = "".join(" " if unicodedata.category(one) in ("Cc", "Cs") else one for one in text).strip()
    if not clean:
        raise RequestError("The text is empty: write what the image shows.")
    return clean
