"""Claims, which allow one decision about a registered model at a time, on any machine.

MLflow has no locks. A claim is a tag of the registered model under a key of its own. A process writes its claim, then
reads all claims. If it sees another one it removes its own, and tries again later. Of two processes that both write
before they read, at least one sees the other, so two never go on at once.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from diptych.errors import DiptychError
from diptych.project.holders import describe_holder, has_died, new_holder, parse_holder
from diptych.registry.registered_model import RegisteredModel

PREFIX = "diptych.claim."
STALE = timedelta(minutes=10)
"""Age of a claim from another machine that a killed process must have left: a decision takes seconds."""
CLAIM_TIMEOUT = 30.0
"""Seconds to wait for the decision of another process."""


@contextmanager
def claimed(model: RegisteredModel, purpose: str) -> Iterator[None]:
    """Keep other processes from deciding about `model` while the block runs.

    Raises:
        DiptychError: another process holds a claim for longer than `CLAIM_TIMEOUT`; the message names it.
    """
    key = f"{PREFIX}{secrets.token_hex(8)}"
    deadline = time.monotonic() + CLAIM_TIMEOUT
    while (other := _try(model, key, purpose)) is not None:
        if time.monotonic() > deadline:
            raise DiptychError(f"Another process decides about {model.name} now: {other}. Wait for it, then run again.")
        time.sleep(random.uniform(0.1, 0.5))
    try:
        yield
    finally:
        _withdraw(model, key)


def is_claimed(model: RegisteredModel) -> bool:
    """Return whether a process decides about `model` now, or was killed while deciding."""
    entry = model.entry()
    return entry is not None and any(name.startswith(PREFIX) for name in entry.tags)


def _try(model: RegisteredModel, key: str, purpose: str) -> str | None:
    """Claim the model and return None; where another process has claimed it, return a description of that."""
    try:
        # An interrupted or unanswered call may have written the tag, so it is removed below.
        with model.errors_explained():
            model.client.set_registered_model_tag(model.name, key, json.dumps(new_holder(purpose)))
        other = next(map(describe_holder, _others(model, key)), None)
    except BaseException:
        with suppress(DiptychError):
            _withdraw(model, key)
        raise
    if other is not None:
        _withdraw(model, key)
    return other


def _others(model: RegisteredModel, key: str) -> list[dict[str, Any]]:
    """Return the claims of other processes, and remove those whose process is gone."""
    with model.errors_explained():
        tags = model.client.get_registered_model(model.name).tags
    claims = {name: parse_holder(text) for name, text in tags.items() if name.startswith(PREFIX) and name != key}
    for name in [name for name, claim in claims.items() if _is_stale(claim)]:
        _withdraw(model, name)
        del claims[name]
    return list(claims.values())


def _withdraw(model: RegisteredModel, key: str) -> None:
    with model.errors_explained():
        model.client.delete_registered_model_tag(model.name, key)


def _is_stale(claim: dict[str, Any]) -> bool:
    try:
        if has_died(claim):
            return True
        return datetime.now(UTC) - datetime.fromisoformat(claim["since"]) > STALE
    except (ValueError, KeyError, TypeError):
        return True
