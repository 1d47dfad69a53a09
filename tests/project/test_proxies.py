"""Proxies: what is sent to this machine goes around them, in each library that is used here."""

from __future__ import annotations

import os
import socket

import httpx
import pytest
from botocore.utils import should_bypass_proxies  # type: ignore[import-untyped]
from requests.utils import get_environ_proxies
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from diptych.orchestration.problems import problem_of
from diptych.project import proxies

PROXY = "http://ann:hunter2@proxy.example:3128"
ELSEWHERE = "http://elsewhere.example:80"
LOCAL = ["http://localhost:1", "http://127.0.0.1:1", "http://0.0.0.0:1", f"http://{socket.gethostname()}:1"]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def direct(url: str) -> dict[str, bool]:
    """Whether a request goes around the proxies, by library."""
    # httpx tells by no public name which transport a request would take.
    client = httpx.Client(verify=False)
    return {
        "httpx": client._transport_for_url(httpx.URL(url)) is client._transport,  # noqa: SLF001
        "requests": not get_environ_proxies(url),
        "botocore": bool(should_bypass_proxies(url)),
        "websockets": get_proxy(parse_uri(url.replace("http", "ws", 1))) is None,
    }


def test_without_a_proxy_nothing_changes() -> None:
    before = dict(os.environ)
    proxies.spare_this_machine()
    assert dict(os.environ) == before


@pytest.mark.parametrize("names", [["http_proxy", "https_proxy"], ["HTTP_PROXY"], ["ALL_PROXY", "http_proxy"]])
@pytest.mark.parametrize("own", [{}, {"no_proxy": "a.example"}, {"NO_PROXY": "a.example, b.example"}, {"no_proxy": ""}])
def test_this_machine_is_asked_directly_and_others_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, names: list[str], own: dict[str, str]
) -> None:
    for name, value in (dict.fromkeys(names, PROXY) | own).items():
        monkeypatch.setenv(name, value)

    proxies.spare_this_machine()
    once = dict(os.environ)
    proxies.spare_this_machine()

    assert dict(os.environ) == once
    for url in LOCAL:
        assert all(direct(url).values()), (url, direct(url))
    assert not any(direct(ELSEWHERE).values())
    if own.get("no_proxy", own.get("NO_PROXY")):
        assert all(direct("http://a.example").values())


def test_other_addresses_of_this_machine_that_the_environment_names_are_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.5:9000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@[::1]:5000")

    proxies.spare_this_machine()

    for url in ("http://127.0.0.5:9000", "http://[::1]:5000"):
        assert all(direct(url).values()), (url, direct(url))


def test_an_asterisk_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("NO_PROXY", "*")

    proxies.spare_this_machine()

    assert os.environ["NO_PROXY"] == os.environ.get("no_proxy", "*") == "*"
    assert all(direct(ELSEWHERE).values())


@pytest.mark.parametrize(
    "given",
    [
        {"ALL_PROXY": "socks://127.0.0.1:1080/"},
        {"http_proxy": PROXY, "all_proxy": "socks5://127.0.0.1:1080"},
        {"http_proxy": PROXY, "no_proxy": "[::1]"},
        {"http_proxy": PROXY, "NO_PROXY": "fe80::/10"},
    ],
)
def test_what_httpx_cannot_use_does_not_keep_it_from_this_machine(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    # Without a package for SOCKS, as here; where it is installed httpx uses such a proxy.
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)

    proxies.spare_this_machine()

    for url in LOCAL:
        assert all(direct(url).values()), (url, direct(url))
    assert direct(ELSEWHERE)["httpx"]
    assert proxies.unusable()
    if "http_proxy" in given:
        assert not direct(ELSEWHERE)["requests"]


def test_a_proxy_is_named_where_it_is_passed_through_but_not_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "ann:hunter2@proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    proxies.spare_this_machine()

    assert proxies.route("https://x.example/api") == "the proxy proxy.example:3128 (https_proxy)"
    assert proxies.route("http://x.example/api") == "the proxy http://proxy.example:3128 (HTTP_PROXY)"
    assert proxies.route("http://127.0.0.1:4200/api") == ""
    problem = problem_of(httpx.ConnectError("refused"), "http://x.example/api")
    assert problem is not None
    assert "does not answer (asked through the proxy http://proxy.example:3128 (HTTP_PROXY)" in problem.text


def test_whatever_a_password_holds_it_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://ann:hunt/er@2@proxy.example:3128")
    assert proxies.describe(proxies.set_proxies()) == "https_proxy=http://proxy.example:3128"


def test_a_proxy_that_nobody_answers_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
        assert proxies.unreachable(5) == {}
    assert proxies.unreachable(5) == {"http_proxy": f"127.0.0.1:{port}"}
    monkeypatch.setenv("http_proxy", "http://")
    assert proxies.unreachable(5) == {"http_proxy": "http://"}
