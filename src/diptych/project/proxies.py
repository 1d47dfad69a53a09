"""Proxies that the environment names, as companies have them: traffic to this machine goes around them.

Each library reads NO_PROXY in its own way. urllib, botocore and websockets compare names and addresses as text,
requests alone knows networks (127.0.0.0/8), and httpx, Prefect's client, refuses to start where it cannot read one.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from diptych.project.addresses import without_secret

_THIS_MACHINE = ("localhost", "127.0.0.1", "127.0.1.1", "127.0.0.0/8", "0.0.0.0", "::1")
"""Names of every machine for itself; Debian's own is 127.0.1.1, and servers say that they listen at 0.0.0.0."""
_ALSO_THIS_MACHINE = re.compile(r"://(?:[^/\s@]*@)?(127(?:\.\d{1,3}){3}|\[::1\])(?=[:/]|$)")
_PORTS = {"http": 80, "https": 443}
_SCHEMES = {"ws": "http", "wss": "https"}


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
    found: dict[str, str] = {}
    for name, value in sorted(os.environ.items()):
        if value and name.lower().endswith("_proxy") and name.lower() != "no_proxy":
            found = {other: address for other, address in found.items() if other.lower() != name.lower()}
            found[name] = without_secret(value)
    return found


def describe(found: Mapping[str, str]) -> str:
    """Return variables and their values for people."""
    return ", ".join(f"{name}={value}" for name, value in found.items())


def unusable() -> dict[str, str]:
    """Return what made httpx, and so Prefect's client, ignore all proxies; empty where it uses them."""
    entries = _entries(os.environ.get("no_proxy", ""))
    return set_proxies() if "*" in entries and len(entries) > 1 else {}


def route(address: str) -> str:
    """Return the proxy that a request to `address` passes through, and its variable; empty where it goes directly."""
    from urllib.request import proxy_bypass

    url = urlsplit(address)
    scheme = _SCHEMES.get(url.scheme, url.scheme)
    if not url.hostname or not set_proxies() or proxy_bypass(url.hostname):
        return ""
    found = {name.lower(): f"the proxy {proxy} ({name})" for name, proxy in set_proxies().items()}
    return found.get(f"{scheme}_proxy", found.get("all_proxy", ""))


def unreachable(patience: float) -> dict[str, str]:
    """Return the proxies to which no connection is made within `patience` seconds, by the name of their variable."""
    found = {}
    for name, proxy in set_proxies().items():
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        try:
            if not url.hostname:
                raise ValueError(proxy)
            socket.create_connection((url.hostname, url.port or _PORTS.get(url.scheme, 1080)), patience).close()
        except (OSError, ValueError):
            found[name] = proxy
    return found


def _names_of_this_machine() -> list[str]:
    import psutil  # type: ignore[import-untyped]

    host = socket.gethostname()
    # Nobody is asked for the full name: behind a proxy there is often no DNS, and the answer takes long.
    names = [*_THIS_MACHINE, host, host.partition(".")[0]]
    for addresses in psutil.net_if_addrs().values():
        names += [one.address.partition("%")[0] for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)]
    for value in os.environ.values():
        names += _ALSO_THIS_MACHINE.findall(value)
    return [name for name in dict.fromkeys(names) if name]


def _extend(names: list[str]) -> None:
    """Add what is missing to both variables."""
    # One that is not set would hide the other from those who read it first.
    both = (("no_proxy", "NO_PROXY"), ("NO_PROXY", "no_proxy"))
    values = {one: os.environ.get(one, os.environ.get(other, "")) for one, other in both}
    for variable, value in values.items():
        present = _entries(value)
        missing = [name for name in names if name not in present]
        # `*` alone turns all proxies off; urllib does not know it within a list.
        if missing and present != ["*"]:
            os.environ[variable] = ",".join([*present, *missing])


def _entries(value: str) -> list[str]:
    return [entry.strip() for entry in value.split(",") if entry.strip()]


def _httpx_starts() -> bool:
    import httpx

    try:
        # Certificates take time to load, and have no part in this.
        httpx.Client(verify=False).close()
    except Exception:  # of an unknown scheme, a missing package for SOCKS, or a text that is no address
        return False
    return True
