"""Addresses as they may be shown: without users, passwords, tokens and signatures."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SECRET = re.compile(r"([?&][^=&]*(?:passw|pwd|secret|token|odbc_connect)[^=&]*=)[^&]*", re.IGNORECASE)
"""A parameter of an address that holds a secret."""
_QUERY_IN_TEXT = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")
_USER_IN_TEXT = re.compile(r"(://)[^/\s]*@")


def without_secret(address: str) -> str:
    """Return one whole address, with or without its scheme, without its user, password and tokens.

    A password may hold any character, so everything before the last @ is removed. A SQLite address is a path, which
    may hold an @ and holds no secret.
    """
    if address.startswith("sqlite"):
        return address
    scheme = match[0] if (match := _SCHEME.match(address)) else ""
    return _SECRET.sub(r"\1…", scheme + address.removeprefix(scheme).rpartition("@")[2])


def without_secrets(text: str) -> str:
    """Return a message without users, passwords and signatures of the addresses in it.

    Each address loses its whole query: signed addresses have many names for their signature.
    """
    return _USER_IN_TEXT.sub(r"\1", _QUERY_IN_TEXT.sub(r"\1", text))
