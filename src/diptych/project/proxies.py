"""Proxies in the environment, as in companies: traffic to this machine goes around them.

Each library reads NO_PROXY differently. urllib, botocore and websockets compare names and addresses as text,
requests alone knows networks (127.0.0.0/8), and httpx, Prefect's client, refuses to start where it cannot read one.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import psutil  # type: ignore[import-untyped]

from diptych.project.addresses import without_secret

_THIS_MACHINE = ("localhost", "127.0.0.1", "127.0.1.1", "127.0.0.0/8", "0.0.0.0", "::1")
"""Names of every machine for itself; Debian's own is 127.0.1.1, and servers say that they listen at 0.0.0.0."""
_ALSO_THIS_MACHINE = re.compile(r"://(?:[^/\s@]*@)?(127(?:\.\d{1,3}){3}|\[::1\])(?=[:/]|$)")
_PORTS = {"http": 80, "https": 443}


def spare_this_machine() -> None:
    """Extend NO_PROXY and no_proxy by this machine's names and addresses, for this process and its children.

    Where no proxy is set nothing changes. httpx raises an error on a proxy or an entry of NO_PROXY that it cannot use,
    even for traffic that would not pass through it. In this case `*` is added at the end: inside a list httpx, and
    httpx alone, reads it as "no proxies at all".
    """
    if not set_proxies():
        return
    _extend(_names_of_this_machine())
    if not unusable() and not _httpx_starts():
        _extend(["*"])


def set_proxies() -> dict[str, str]:
    """Return the proxies by the name of their variable, without passwords; a lower-case name wins, as in urllib."""
    proxies: dict[str, str] = {}
    for name, value in sorted(os.environ.items()):
        if value and name.lower().endswith("_proxy") and name.lower() != "no_proxy":
            proxies = {other: address for other, address in proxies.items() if other.lower() != name.lower()}
            proxies[name] = without_secret(value)
    return proxies


def describe(proxies: Mapping[str, str]) -> str:
    """Return variables and their values for people."""
    return ", ".join(f"{name}={value}" for name, value in proxies.items())


def unusable() -> dict[str, str]:
    """Return the proxies that httpx, and so Prefect's client, ignores because of `*` in NO_PROXY; empty without it."""
    entries = _entries(os.environ.get("no_proxy", ""))
    return set_proxies() if "*" in entries and len(entries) > 1 else {}


def route(address: str) -> str:
    """Return the proxy that a request to `address` passes through, and its variable; empty where it goes directly."""
    url = urlsplit(address)
    scheme = {"ws": "http", "wss": "https"}.get(url.scheme, url.scheme)
    if not url.hostname or not set_proxies() or proxy_bypass(url.hostname):
        return ""
    proxies = {name.lower(): f"the proxy {proxy} ({name})" for name, proxy in set_proxies().items()}
    return proxies.get(f"{scheme}_proxy", proxies.get("all_proxy", ""))


def unreachable(patience: float) -> dict[str, str]:
    """Return the proxies to which no connection is made within `patience` seconds, by the name of their variable."""
    silent = {}
    for name, proxy in set_proxies().items():
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        try:
            if not url.hostname:
                raise ValueError(proxy)
            socket.create_connection((url.hostname, url.port or _PORTS.get(url.scheme, 1080)), patience).close()
        except (OSError, ValueError):
            silent[name] = proxy
    return silent


def _names_of_this_machine() -> list[str]:
    host = socket.gethostname()
    # The full name is left out: DNS knows it, and behind a proxy DNS is often missing and slow to fail.
    names = [*_THIS_MACHINE, host, host.partition(".")[0]]
    for addresses in psutil.net_if_addrs().values():
        families = (socket.AF_INET, socket.AF_INET6)
        names += [entry.address.partition("%")[0] for entry in addresses if entry.family in families]
    for value in os.environ.values():
        names += _ALSO_THIS_MACHINE.findall(value)
    return [name for name in dict.fromkeys(names) if name]


def _extend(names: list[str]) -> None:
    """Add what is missing to both variables."""
    # A library reads one of the two first: set alone, it would hide the other.
    pairs = (("no_proxy", "NO_PROXY"), ("NO_PROXY", "no_proxy"))
    values = {name: os.environ.get(name, os.environ.get(other, "")) for name, other in pairs}
    for variable, value in values.items():
        present = _entries(value)
        missing = [name for name in names if name not in present]
        # `*` alone turns all proxies off. It must stay alone: urllib does not know it within a list.
        if missing and present != ["*"]:
            os.environ[variable] = ",".join([*present, *missing])


def _entries(value: str) -> list[str]:
    return [entry.strip() for entry in value.split(",") if entry.strip()]


def _httpx_starts() -> bool:
    import httpx

    try:
        # Certificates take time to load and are not needed here.
        httpx.Client(verify=False).close()
    except Exception:  # an unknown scheme, a missing package for SOCKS, or a text that is no address
        return False
    return True
