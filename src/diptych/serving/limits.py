"""Limits of a request: the size of its body, and who may ask."""

from __future__ import annotations

import base64
import binascii
import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 12 * 2**20
"""Largest body of a request: an uploaded image and a few fields."""
_OPEN = {"/healthz", "/readyz"}
"""Paths that probes ask for, without a token."""


class LimitedBody:
    """ASGI middleware that answers 413 to a request whose body is too large, whatever its header says."""

    def __init__(self, app: ASGIApp, limit: int = BODY_BYTES) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, as long as its body is within the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _refuse(413, f"The body is larger than {self._limit:,} bytes.")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit:
            await refusal(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # The application reads no more of a body that is too large: for it, the client has gone away.
            return message if received <= self._limit else {"type": "http.disconnect"}

        async def within_limit(message: Message) -> None:
            if received <= self._limit:
                await send(message)

        await self._app(scope, counted, within_limit)
        if received > self._limit:
            await refusal(scope, receive, send)


class RequiredToken:
    """ASGI middleware that answers 401 without the token: as bearer token, or as password of HTTP Basic."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it has the token."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            given = _token_of(dict(scope["headers"]).get(b"authorization", b""))
            if not hmac.compare_digest(given, self._token):
                refusal = _refuse(401, "The token is missing or wrong.")
                refusal.headers["WWW-Authenticate"] = 'Basic realm="diptych", charset="UTF-8"'
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _token_of(header: bytes) -> bytes:
    kind, _, value = header.partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status)
