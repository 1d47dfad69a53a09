"""History of the decisions about a registered model: who, when, from which version to which, why, and on which figures.

Each event is a tag of the registered model under a key of its own, written once and never changed. It is written before
the alias moves. Where the two disagree, a decision was broken off, or a person moved the alias by other means;
`reconcile` then records where the alias stands.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from diptych.errors import printable
from diptych.registry.registered_model import CHAMPION, PREVIOUS, RegisteredModel

Action = Literal["promoted", "rolled back", "rejected", "found", "broken off", "drop refused", "drop known"]
"""Kind of an event. `found`: the alias was moved by other means; `broken off`: the decision before did not move it."""

PREFIX = "diptych.history."
SETTLED = "diptych.settled"
"""Tag with the number of the last event whose move is known to have taken place."""
_KEY = re.compile(re.escape(PREFIX) + r"([0-9]{8})\.[0-9a-f]{8}")
log = logging.getLogger(__name__)

_BROKEN_OFF: tuple[Action, str] = (
    "broken off",
    "the decision before was broken off, and the alias stands where it stood",
)
_FOUND: tuple[Action, str] = "found", "the alias was moved by other means than these commands"
_LONGEST, _LONGEST_NAME = 1000, 100
"""Characters of a reason, and of a name; a tag of some stores holds 5,000 bytes in all."""


@dataclass(frozen=True)
class Event:
    """A decision; `origin` and `target` are the numbers of the champions before and after."""

    action: Action
    origin: str | None
    target: str | None
    why: str
    figures: dict[str, float] = field(default_factory=dict)
    forced: bool = False
    who: str = field(default_factory=lambda: os.environ.get("DIPTYCH_USER") or _user())
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def moves(self) -> bool:
        """True if the event changes the version in use."""
        return self.action in ("promoted", "rolled back", "found", "broken off")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class _State(NamedTuple):
    """History and aliases at one moment; empty where there is no such model."""

    events: list[tuple[int, Event]]
    """Events with their numbers, the oldest first."""
    settled: int
    """Number up to which the events are settled."""
    aliases: dict[str, str]


def record(model: RegisteredModel, event: Event) -> int:
    """Add an event and return its number.

    Where the event moves the alias, the caller has claimed the model and moves it next.
    """
    number = max((number for number, _ in _read(model).events), default=0) + 1
    texts = {"why": printable(event.why, " ")[:_LONGEST], "who": printable(event.who, " ")[:_LONGEST_NAME]}
    content = json.dumps({**event.to_json(), **texts}, ensure_ascii=False)
    with model.errors_explained():
        model.client.set_registered_model_tag(model.name, f"{PREFIX}{number:08d}.{secrets.token_hex(4)}", content)
    return number


def history(model: RegisteredModel) -> list[Event]:
    """Return all events, the oldest first."""
    return [event for _, event in _read(model).events]


def effective_events(events: Sequence[Event]) -> list[Event]:
    """Return the events that took effect: without each decision that was broken off, and the event that says so."""
    effective: list[Event] = []
    for event in events:
        moves = [index for index, earlier in enumerate(effective) if earlier.moves]
        if event.action == "broken off" and moves and _undoes(event, effective[moves[-1]]):
            del effective[moves[-1]]
        else:
            effective.append(event)
    return effective


def earlier_champions(events: Sequence[Event]) -> list[str]:
    """Return the champions that a rollback can go back to, the most recent last, by replaying all moves.

    A promotion adds the champion before it. A rollback removes its target and all after it. A move back to the champion
    before the last move undoes that move, which was broken off.
    """
    earlier: list[str] = []
    # The last move, and the earlier champions before it.
    last: tuple[Event, list[str]] | None = None
    for move in events:
        if not move.moves:
            continue
        if last is not None and _undoes(move, last[0]):
            earlier, last = last[1], None
        else:
            earlier, last = _replay(move, earlier), (move, earlier)
    return earlier


def rollback_targets(model: RegisteredModel, events: Sequence[Event], champion: str | None) -> list[str]:
    """Return the earlier champions that still exist, except the present one, the most recent last."""
    present = model.numbers()
    return [number for number in earlier_champions(events) if number in present and number != champion]


def _replay(move: Event, earlier: list[str]) -> list[str]:
    """Return the earlier champions after a move."""
    if move.action != "promoted" and move.target in earlier:
        last_index = max(index for index, number in enumerate(earlier) if number == move.target)
        return earlier[:last_index]
    return earlier if move.origin is None else [*earlier, move.origin]


def _undoes(move: Event, last: Event) -> bool:
    return move.action in ("found", "broken off") and (move.origin, move.target) == (last.target, last.origin)


def last_rollback_from(events: Sequence[Event], version: str) -> Event | None:
    """Return the last rollback that took `version` out of use; None where there was none."""
    rollbacks = (event for event in reversed(events) if event.action == "rolled back" and event.origin == version)
    return next(rollbacks, None)


def reconcile(model: RegisteredModel) -> None:
    """Make history and aliases agree; the caller has claimed the model.

    A promotion that was killed after its event and before the alias moved did not take place. Users load by the alias,
    so an event records where the alias stands.
    """
    state = _read(model)
    number, recorded = _last_move(state.events)
    champion = state.aliases.get(CHAMPION)
    events = [event for _, event in state.events]
    if recorded != champion:
        action, why = _BROKEN_OFF if state.settled < number else _FOUND
        events.append(Event(action, origin=recorded, target=champion, why=why))
        number = record(model, events[-1])
    if state.settled < number:
        with model.errors_explained():
            model.client.set_registered_model_tag(model.name, SETTLED, str(number))
    previous = _previous_champion(model, events, champion)
    if previous and state.aliases.get(PREVIOUS) != previous:
        model.set_alias(PREVIOUS, previous)
    elif not previous and PREVIOUS in state.aliases:
        model.remove_alias(PREVIOUS)


def is_reconciled(model: RegisteredModel) -> bool:
    """Return whether `reconcile` would have nothing to do; this needs no claim."""
    state = _read(model)
    number, recorded = _last_move(state.events)
    champion = state.aliases.get(CHAMPION)
    previous = _previous_champion(model, [event for _, event in state.events], champion)
    return recorded == champion and state.settled >= number and state.aliases.get(PREVIOUS) == previous


def _last_move(events: Sequence[tuple[int, Event]]) -> tuple[int, str | None]:
    """Return the number of the last event that moves the alias, and the champion that it names; 0 and None without."""
    return max(
        ((number, event.target) for number, event in events if event.moves), default=(0, None), key=itemgetter(0)
    )


def _previous_champion(model: RegisteredModel, events: Sequence[Event], champion: str | None) -> str | None:
    """Return the version that a rollback goes back to by default."""
    return next(reversed(rollback_targets(model, events, champion)), None)


def _read(model: RegisteredModel) -> _State:
    tags, aliases = model.entry() or ({}, {})
    matches = ((key, match) for key in sorted(tags) if (match := _KEY.fullmatch(key)))
    events = [(int(match[1]), event) for key, match in matches if (event := _read_event(key, tags[key]))]
    settled = tags.get(SETTLED, "")
    return _State(events, int(settled) if settled.isdecimal() else 0, aliases)


def _read_event(key: str, text: str) -> Event | None:
    try:
        return Event(**json.loads(text))
    except (ValueError, TypeError):
        log.warning("The registry's tag %s is no event that this diptych reads.", key)
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
