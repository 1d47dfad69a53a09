"""Notes by which a process tells others what it holds, and whether that process still runs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import psutil  # type: ignore[import-untyped]

DYING = 10.0
"""Seconds that killed processes are given to end."""


def new_holder(purpose: str) -> dict[str, Any]:
    """Return the note by which this process tells others that it holds something from now on, and what for."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"purpose": purpose, "host": socket.gethostname(), "pid": os.getpid(), "since": since}


def parse_holder(text: str) -> dict[str, Any]:
    """Return the note in the JSON of `new_holder`; empty where the text is no such note, or not all of it yet."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    is_note = isinstance(holder, dict) and {"purpose", "host", "pid", "since"} <= holder.keys()
    return holder if is_note and isinstance(holder["pid"], int) else {}


def describe_holder(holder: Mapping[str, Any]) -> str:
    """Return the words that name a holder in a message."""
    return f"`{holder['purpose']}` (process {holder['pid']} on {holder['host']}, since {holder['since']})"


def has_died(holder: Mapping[str, Any]) -> bool:
    """Return whether the process of a note was one of this machine and runs no more."""
    return holder.get("host") == socket.gethostname() and not is_alive(holder["pid"])


def is_alive(pid: int) -> bool:
    """Return whether a process runs.

    A zombie, which has ended and was not waited for, does not run. Containers whose first process reaps no orphans
    have them.
    """
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        # The system hides the state of other users' processes (/proc with hidepid=1).
        return True
