"""What the exceptions of Prefect's client and settings mean."""

from __future__ import annotations

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings.models.client import ClientSettings
from prefect.settings.models.logging import LoggingSettings
from prefect.settings.models.server.ephemeral import ServerEphemeralSettings
from pydantic import ValidationError
from pydantic_settings import BaseSettings
from pydantic_settings.exceptions import SettingsError

from diptych.orchestration.problems import NOT_PREFECT, invalid_setting, problem_of
from diptych.project.prefect_settings import Setting

URL = "http://prefect.example/api"


def refused(status: int, text: str) -> httpx.HTTPStatusError:
    """What Prefect's client raises of an answer."""
    request = httpx.Request("GET", URL)
    response = httpx.Response(status, text=text, request=request)
    return PrefectHTTPStatusError.from_httpx_error(httpx.HTTPStatusError("no", request=request, response=response))


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (httpx.ConnectError("[Errno -2] Name or service not known"), "does not answer: [Errno -2] Name or service"),
        (httpx.ConnectTimeout(""), "does not answer: no answer in time"),
        (httpx.ReadTimeout("timed out"), "does not answer: no answer in time"),
        (httpx.RemoteProtocolError("Server disconnected"), "does not answer: Server disconnected"),
        (httpx.ProxyError("407 Proxy Authentication Required"), "does not answer: 407 Proxy"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] x"), "has a certificate that is not trusted"),
        (httpx.UnsupportedProtocol("Request URL is missing"), "is no address"),
        (httpx.InvalidURL("Invalid port"), "is no address"),
        (refused(401, "{}"), "lets in only who has its password or a key (401)"),
        (refused(403, '{"detail": "no"}'), 'refuses this user (403: {"detail": "no"})'),
        (refused(404, ""), "has no Prefect server at this path (404)"),
        (refused(502, "<html>x</html>"), "answered 502: a web page"),
        (RuntimeError("Found incompatible versions: client: 3.8.8, server: 2.20.1."), "is of another version"),
        (RuntimeError("Failed to reach API at http://x"), NOT_PREFECT.text),
    ],
)
def test_each_failure_is_told_in_its_own_words(error: Exception, told: str) -> None:
    problem = problem_of(error, URL)
    assert problem is not None
    assert problem.text.startswith(told)
    assert problem.remedy


def test_what_prefect_wraps_is_told_not_the_wrapping() -> None:
    error = RuntimeError("Failed to reach API at http://x")
    error.__cause__ = httpx.ConnectError("refused")
    assert problem_of(error, URL) == problem_of(httpx.ConnectError("refused"), URL)


@pytest.mark.parametrize("error", [RuntimeError("another"), KeyError("x"), OSError("disk"), ValueError("x")])
def test_other_errors_are_not_taken_for_the_servers(error: Exception) -> None:
    assert problem_of(error, URL) is None


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (LoggingSettings, "PREFECT_LOGGING_LEVEL", "LOUD"),
        (ClientSettings, "PREFECT_CLIENT_MAX_RETRIES", "-1"),
        # No JSON: an error of another class.
        (ClientSettings, "PREFECT_CLIENT_CUSTOM_HEADERS", "hunter2"),
        # The old name of PREFECT_SERVER_EPHEMERAL_ENABLED.
        (ServerEphemeralSettings, "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "hunter2"),
    ],
)
def test_an_invalid_setting_is_named_with_its_place_but_not_its_value(
    monkeypatch: pytest.MonkeyPatch, settings: type[BaseSettings], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises((ValidationError, SettingsError)) as raised:
        settings()
    known = [Setting(name, value, f"the environment variable {name}", ""), Setting("PREFECT_HOME", "/", "x", "")]
    message = invalid_setting(raised.value, known)
    assert message.startswith(f"Prefect cannot start: {name}: ")
    assert message.endswith(f"(in the environment variable {name}).")
    assert message.count("PREFECT_") == 2
    assert "hunter2" not in message
