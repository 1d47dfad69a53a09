"""What the exceptions of Prefect's client and settings mean, in words for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from diptych.project import proxies
from diptych.project.addresses import without_secrets
from diptych.project.prefect_settings import SERVER, Setting

if TYPE_CHECKING:
    import httpx

_LONGEST = 300
_UNREACHABLE = "Failed to reach API"
"""Prefect's words, around whatever went wrong."""
_OTHER_VERSION = "Found incompatible versions"
_GATEWAY = (407, 502, 503, 504)
"""Answers of a proxy, or of what stands before a server."""


class Problem(NamedTuple):
    """What is wrong with a server, as the rest of a sentence about it, and what to do."""

    text: str
    mend: str = "Start that server, or correct the address"


NOT_PREFECT = Problem(
    "does not answer as Prefect does, but with something else, such as the login page of a proxy",
    "The address of a server ends in /api; correct it",
)


def problem_of(error: BaseException, url: str) -> Problem | None:
    """Return what `error` says of the server at `url`; None where it is of something else."""
    import httpx

    for one in _chain(error):
        if isinstance(one, httpx.HTTPError) and not _is_about(one, url):
            return None
        if isinstance(one, httpx.HTTPStatusError):
            return _refusal(one.response, url)
        if isinstance(one, httpx.UnsupportedProtocol | httpx.InvalidURL):
            return Problem(f"is no address ({_short(one)})", "Correct it; http://127.0.0.1:4200/api is one")
        if isinstance(one, httpx.HTTPError):
            return _silence(one, url)
        if isinstance(one, RuntimeError) and _OTHER_VERSION in str(one):
            return Problem(
                f"is of another version ({_short(one)})", "Use a server of the version that requirements.lock names"
            )
    return NOT_PREFECT if isinstance(error, RuntimeError) and _UNREACHABLE in str(error) else None


def _is_about(error: httpx.HTTPError, url: str) -> bool:
    """Return whether the server at `url` was asked: libraries of a flow may ask others by the same client."""
    try:
        return not url or error.request.url.host in url
    except RuntimeError:
        # It was raised before there was a request.
        return True


def invalid_setting(error: Exception, known: Sequence[Setting]) -> str:
    """Return what is wrong with Prefect's settings; `known` are those that the user has set."""
    parts = [_invalid(field, value, message, known) for field, value, message in _faults(error)]
    return f"Prefect cannot start: {'; '.join(parts)}."


def _invalid(field: str, value: object, message: str, known: Sequence[Setting]) -> str:
    matches = [one for one in known if one.name.endswith(field.upper()) and value in (None, one.value)]
    # A setting that was renamed has its old name in the environment and its new one in the error.
    matches = matches or [one for one in known if one.value == value]
    if not matches:
        # What is wrong of several settings together is the address: nothing else is checked beside others.
        server = [f" ({SERVER} is in {one.where})" for one in known if one.name == SERVER][:1]
        return f"{field}: {message}" if field else "".join([message, *server])
    # The first is the one in force. The value is not told: it may be a secret.
    return f"{matches[0].name}: {message} (in {matches[0].where})"


def _faults(error: Exception) -> Iterator[tuple[str, object, str]]:
    """Yield the field, the value and what is wrong with it, for each fault; the value is None where it is unknown."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        for one in error.errors():
            # Others follow from the first ones.
            if one["type"] != "default_factory_not_called":
                yield str(one["loc"][-1]) if one["loc"] else "", str(one["input"]), one["msg"]
    else:
        named = re.search(r'field "(\w+)"', str(error))
        yield (named[1], None, "cannot be read") if named else ("", None, _short(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__


def _refusal(response: httpx.Response, url: str) -> Problem:
    status, text = response.status_code, " ".join(response.text.split())
    said = "a web page" if text.startswith("<") else without_secrets(text)[:_LONGEST]
    if status == 401:
        mend = "Set PREFECT_API_AUTH_STRING to its USER:PASSWORD, or PREFECT_API_KEY to a key of Prefect Cloud"
        return Problem("lets in only who has its password or a key (401)", mend)
    if status == 403:
        return Problem(f"refuses this user (403: {said})", "Use a key or password that may do this")
    if status == 404:
        mend = "An address ends in /api; of Prefect Cloud in /accounts/ID/workspaces/ID: correct it"
        return Problem("has no Prefect server at this path (404)", mend)
    through = _through(url) if status in _GATEWAY else ""
    return Problem(f"answered {status}{through}: {said}", "Look at the log of that server")


def _silence(error: httpx.HTTPError, url: str) -> Problem:
    import httpx

    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        named = next((name for name in ("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE") if os.environ.get(name)), "")
        trusted = f"now {os.environ[named]} of {named}" if named else "now the usual ones"
        mend = f"Set PREFECT_API_SSL_CERT_FILE to the file of the authorities to trust ({trusted})"
        return Problem(f"has a certificate that is not trusted ({_short(error)})", mend)
    said = "no answer in time" if isinstance(error, httpx.TimeoutException) else _short(error)
    return Problem(f"does not answer{_through(url)}: {said}")


def _through(url: str) -> str:
    """Return which way the question went, where proxies are set."""
    way = proxies.route(url)
    if way and proxies.unusable():
        return f" (asked directly: Prefect's client cannot use {way}, or cannot read NO_PROXY)"
    return f" (asked through {way}; NO_PROXY names what is asked directly)" if way else ""


def _short(error: BaseException) -> str:
    return without_secrets(" ".join(str(error).split()))[:_LONGEST] or type(error).__name__
