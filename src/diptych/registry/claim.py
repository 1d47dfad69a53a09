"""One decision about a registered model at a time, wherever it is made from.

MLflow has no locks. A claim is a tag of the registered model under a key of its own: who wants to decide first writes
one, then reads all; whoever finds another's beside its own takes its own back and tries again later. Of two that write
before they read, at least one sees the other, so never do two of them go on.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from diptych.errors import DiptychError
from diptych.project.processes import is_alive
from diptych.registry.registered_model import RegisteredModel

PREFIX = "diptych.claim."
STALE = timedelta(minutes=10)
"""A claim from another machine that is as old was left by a process that was killed: a decision takes seconds."""
PATIENCE = 30.0
"""Seconds to wait for another's decision."""


@contextmanager
def claimed(model: RegisteredModel, purpose: str) -> Iterator[None]:
    """Keeps others from deciding about `model` while the block runs.

    Raises:
        DiptychError: another process is at it, and does not end within `PATIENCE`; the message says which.
    """
    key = f"{PREFIX}{secrets.token_hex(8)}"
    deadline = time.monotonic() + PATIENCE
    while (other := _try(model, key, purpose)) is not None:
        if time.monotonic() > deadline:
            raise DiptychError(f"{model.name} is being decided about by {other}. Wait for it, then look again.")
        time.sleep(random.uniform(0.1, 0.5))
    try:
        yield
    finally:
        _withdraw(model, key)


def is_claimed(model: RegisteredModel) -> bool:
    """Whether somebody decides about `model` now, or was killed while deciding."""
    with model.known():
        return any(name.startswith(PREFIX) for name in model.client.get_registered_model(model.name).tags)


def _try(model: RegisteredModel, key: str, purpose: str) -> str | None:
    """Who else is at it; None if nobody is, and the claim stands."""
    claim = {
        "purpose": purpose,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        # Within: a call that was interrupted, or not answered, may have written it.
        with model.known():
            model.client.set_registered_model_tag(model.name, key, json.dumps(claim))
        other = next((_describe(text) for text in _others(model, key)), None)
    except BaseException:
        with suppress(DiptychError):
            _withdraw(model, key)
        raise
    if other is not None:
        _withdraw(model, key)
    return other


def _others(model: RegisteredModel, key: str) -> list[str]:
    """The claims of others; those that nobody stands behind any more are removed."""
    with model.known():
        tags = model.client.get_registered_model(model.name).tags
    claims = {name: text for name, text in tags.items() if name.startswith(PREFIX) and name != key}
    for name in [name for name, text in claims.items() if _is_stale(text)]:
        _withdraw(model, name)
        del claims[name]
    return list(claims.values())


def _withdraw(model: RegisteredModel, key: str) -> None:
    with model.known():
        model.client.delete_registered_model_tag(model.name, key)


def _is_stale(text: str) -> bool:
    try:
        claim = json.loads(text)
        _describe(text)
        # Only Linux tells which processes are alive.
        here = sys.platform == "linux" and claim["host"] == socket.gethostname()
        if here and not is_alive(int(claim["pid"])):
            return True
        return datetime.now(UTC) - datetime.fromisoformat(claim["since"]) > STALE
    except (ValueError, KeyError, TypeError):
        return True


def _describe(text: str) -> str:
    claim = json.loads(text)
    return f"`{claim['purpose']}` (process {claim['pid']} on {claim['host']}, since {claim['since']})"
