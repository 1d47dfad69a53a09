"""Explanations of exceptions of Prefect's client and settings, in words for the user."""

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
"""Characters of an answer that are shown at most."""
_UNREACHABLE = "Failed to reach API"
"""Prefect's words, around whatever went wrong."""
_OTHER_VERSION = "Found incompatible versions"
_GATEWAY = (407, 502, 503, 504)
"""Answers of a proxy, or of what stands before a server."""


class Problem(NamedTuple):
    """A fault of a server."""

    text: str
    """The rest of a sentence that begins with the server's address."""
    remedy: str = "Start that server, or correct the address"


NOT_PREFECT = Problem(
    "does not answer as Prefect does, but with something else, such as the login page of a proxy",
    "The address of a server ends in /api; correct it",
)


def problem_of(error: BaseException, url: str) -> Problem | None:
    """Return what `error` says about the server at `url`; None where it is about something else."""
    import httpx

    for cause in _chain(error):
        if isinstance(cause, httpx.HTTPError) and not _is_about(cause, url):
            return None
        if isinstance(cause, httpx.HTTPStatusError):
            return _refusal(cause.response, url)
        if isinstance(cause, httpx.UnsupportedProtocol | httpx.InvalidURL):
            return Problem(f"is no address ({_short(cause)})", "Correct it; http://127.0.0.1:4200/api is one")
        if isinstance(cause, httpx.HTTPError):
            return _silence(cause, url)
        if isinstance(cause, RuntimeError) and _OTHER_VERSION in str(cause):
            return Problem(
                f"is of another version ({_short(cause)})", "Use a server of the version that requirements.lock names"
            )
    return NOT_PREFECT if isinstance(error, RuntimeError) and _UNREACHABLE in str(error) else None


def _is_about(error: httpx.HTTPError, url: str) -> bool:
    """Return whether the request went to the server at `url`: libraries of a flow may send requests to others."""
    try:
        return not url or error.request.url.host in url
    except RuntimeError:
        # The error was raised before there was a request.
        return True


def invalid_setting(error: Exception, known: Sequence[Setting]) -> str:
    """Return what is wrong with Prefect's settings; `known` are the settings of the user."""
    parts = [_invalid(field, value, message, known) for field, value, message in _faults(error)]
    return f"Prefect cannot start: {'; '.join(parts)}."


def _invalid(field: str, value: object, message: str, known: Sequence[Setting]) -> str:
    matches = [setting for setting in known if setting.name.endswith(field.upper()) and value in (None, setting.value)]
    # A setting that was renamed has its old name in the environment and its new one in the error.
    matches = matches or [setting for setting in known if setting.value == value]
    if not matches:
        # An error without a field is about the address: Prefect checks no other settings in combination.
        server = [f" ({SERVER} is in {setting.where})" for setting in known if setting.name == SERVER][:1]
        return f"{field}: {message}" if field else "".join([message, *server])
    # The first is in force. The value is not shown: it may be a secret.
    return f"{matches[0].name}: {message} (in {matches[0].where})"


def _faults(error: Exception) -> Iterator[tuple[str, object, str]]:
    """Yield the field, the value and what is wrong with it, for each fault; the value is None where it is unknown."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        for fault in error.errors():
            # A default factory is not called as a consequence of another fault.
            if fault["type"] != "default_factory_not_called":
                yield str(fault["loc"][-1]) if fault["loc"] else "", str(fault["input"]), fault["msg"]
    else:
        named = re.search(r'field "(\w+)"', str(error))
        yield (named[1], None, "cannot be read") if named else ("", None, _short(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _refusal(response: httpx.Response, url: str) -> Problem:
    status, text = response.status_code, " ".join(response.text.split())
    answer = "a web page" if text.startswith("<") else without_secrets(text)[:_LONGEST]
    if status == 401:
        remedy = "Set PREFECT_API_AUTH_STRING to its USER:PASSWORD, or PREFECT_API_KEY to a key of Prefect Cloud"
        return Problem("lets in only who has its password or a key (401)", remedy)
    if status == 403:
        return Problem(f"refuses this user (403: {answer})", "Use a key or password that may do this")
    if status == 404:
        remedy = "An address ends in /api; of Prefect Cloud in /accounts/ID/workspaces/ID: correct it"
        return Problem("has no Prefect server at this path (404)", remedy)
    through = _through(url) if status in _GATEWAY else ""
    return Problem(f"answered {status}{through}: {answer}", "Look at the log of that server")


def _silence(error: httpx.HTTPError, url: str) -> Problem:
    import httpx

    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        named = next((name for name in ("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE") if os.environ.get(name)), "")
        trusted = f"now {os.environ[named]} of {named}" if named else "now the usual ones"
        remedy = f"Set PREFECT_API_SSL_CERT_FILE to the file of the authorities to trust ({trusted})"
        return Problem(f"has a certificate that is not trusted ({_short(error)})", remedy)
    reason = "no answer in time" if isinstance(error, httpx.TimeoutException) else _short(error)
    return Problem(f"does not answer{_through(url)}: {reason}")


def _through(url: str) -> str:
    """Return the route of the request, where proxies are set."""
    proxy = proxies.route(url)
    if proxy and proxies.unusable():
        return f" (asked directly: Prefect's client cannot use {proxy}, or cannot read NO_PROXY)"
    return f" (asked through {proxy}; NO_PROXY names what is asked directly)" if proxy else ""


def _short(error: BaseException) -> str:
    return without_secrets(" ".join(str(error).split()))[:_LONGEST] or type(error).__name__
