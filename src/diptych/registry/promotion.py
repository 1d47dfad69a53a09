"""Which version is in use: promotion with evidence, and the way back.

Every decision is made alone (`claimed`), on what the registry holds at that moment, is written down first, and then
moves the alias in one call, so that there is a champion at every moment.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diptych.errors import DiptychError
from diptych.registry.claim import claimed, is_claimed
from diptych.registry.history import Event, earlier_champions, history, is_settled, record, settle
from diptych.registry.registered_model import CHAMPION, RegisteredModel, Version

if TYPE_CHECKING:
    from diptych.registry.gate import Decision


class Moved(NamedTuple):
    """What became of the alias champion."""

    before: str | None
    after: str
    event: Event | None
    """None where nothing had to move."""


def promote(
    model: RegisteredModel, version: Version, decision: Decision | None, *, why: str = "", forced: bool = False
) -> Moved:
    """Makes `version` the champion.

    Args:
        decision: of the gate; where it refuses, only `forced` goes on.
        why: the reason; a forced promotion needs one.

    Raises:
        DiptychError: the gate refuses, a forced promotion has no reason, or another version has become champion since
            the gate compared with the one before.
    """
    if forced:
        require_reason(why)
    with claimed(model, f"promotion of {version.title}"):
        settle(model)
        champion = model.aliases().get(CHAMPION)
        if champion == version.version:
            return Moved(champion, version.version, None)
        if not forced:
            _require(decision, version, champion, model)
        figures = decision.figures() if decision else {}
        said = why.strip() or (decision.summary if decision else "")
        return _move(model, Event("promoted", champion, version.version, said, figures, forced))


def require_reason(why: str) -> None:
    """Of whoever promotes against the gate."""
    if not why.strip():
        raise DiptychError("A promotion against the gate needs a reason, which history keeps: --reason TEXT.")


def reject(model: RegisteredModel, version: Version, decision: Decision) -> Event:
    """Writes down that `version` did not become champion."""
    with claimed(model, f"rejection of {version.title}"):
        settle(model)
        champion = model.aliases().get(CHAMPION)
        event = Event("rejected", champion, version.version, decision.summary, decision.figures())
        record(model, event)
    return event


def roll_back(model: RegisteredModel, to: str | None = None, *, why: str) -> Moved:
    """Makes an earlier champion the champion again: the last one, or the version `to`.

    Raises:
        DiptychError: there is none, or its package is gone or damaged.
    """
    with claimed(model, "rollback"):
        settle(model)
        champion = model.aliases().get(CHAMPION)
        there = model.numbers()
        earlier = [number for number in earlier_champions(history(model)) if number in there and number != champion]
        target = _target(model, earlier, to, champion)
        with tempfile.TemporaryDirectory() as folder:
            model.download(model.find(target), Path(folder))
        return _move(model, Event("rolled back", champion, target, why.strip()))


def mend(model: RegisteredModel) -> None:
    """Makes history and aliases agree, where there is a registry at all, and takes away the claims of the killed."""
    if model.exists() and (is_claimed(model) or not is_settled(model)):
        with claimed(model, "mending"):
            settle(model)


def _target(model: RegisteredModel, earlier: list[str], to: str | None, champion: str | None) -> str:
    if to is None:
        if not earlier:
            there = f"version {champion} is the only one that there has been" if champion else "there has been none"
            raise DiptychError(f"{model.name} has no earlier champion to go back to: {there}.")
        return earlier[-1]
    number = model.find(to).version
    if number == champion:
        raise DiptychError(f"{model.name} version {number} is the champion already.")
    if number not in earlier:
        known = ", ".join(dict.fromkeys(earlier)) or "none"
        raise DiptychError(
            f"{model.name} version {number} was no champion before (those there are: {known}). What never was one is "
            f"promoted: `diptych promote {number}`."
        )
    return number


def _require(decision: Decision | None, version: Version, champion: str | None, model: RegisteredModel) -> None:
    """The gate has compared `version` with the very champion that there is, and accepted it."""
    if decision is None or not decision.accepted:
        said = decision.summary if decision else "it was not asked"
        raise DiptychError(f"{version.title} is not promoted: {said}.")
    if decision.champion != champion:
        last = next((event for event in reversed(history(model)) if event.moves), None)
        by = f", by {last.who} at {last.when} ({last.why})" if last else ""
        raise DiptychError(
            f"{version.title} was compared with {_named(decision.champion)}, and meanwhile {_named(champion)} is the "
            f"champion{by}. Promote again, to compare with that one."
        )


def _named(number: str | None) -> str:
    return f"version {number}" if number else "no champion"


def _move(model: RegisteredModel, event: Event) -> Moved:
    assert event.target is not None
    record(model, event)
    model.point(CHAMPION, event.target)
    settle(model)
    return Moved(event.origin, event.target, event)
