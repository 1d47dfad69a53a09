"""What was decided about a registered model: who, when, from which version to which, why, and on which figures.

Each event is a tag of the registered model under a key of its own, written once and never changed. It is written before
the alias moves: where the two disagree, a decision was broken off, or somebody moved the alias by other means, and
`settle` writes down what is found.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Literal

from diptych.registry.registered_model import CHAMPION, PREVIOUS, RegisteredModel

Action = Literal["promoted", "rolled back", "rejected", "found", "broken off", "drop refused", "drop known"]
"""`found`: the alias was moved by other means; `broken off`: the decision before did not come to move it."""

PREFIX = "diptych.history."
SETTLED = "diptych.settled"
"""The tag that holds the number of the last event whose move was seen to have taken place."""
_KEY = re.compile(re.escape(PREFIX) + r"([0-9]{8})\.[0-9a-f]{8}")
log = logging.getLogger(__name__)

_LONGEST, _LONGEST_NAME = 1000, 100
"""Characters of a reason, and of a name; a tag of some stores holds 5,000 bytes in all."""


@dataclass(frozen=True)
class Event:
    """One decision. `origin` and `target` are version numbers, of the champions before and after."""

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
        """Whether another version is in use after it."""
        return self.action in ("promoted", "rolled back", "found", "broken off")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def record(model: RegisteredModel, event: Event) -> int:
    """Adds an event, and returns its number; what it would move is moved by the caller, afterwards."""
    number = max((number for number, _ in _tags(model)[0]), default=0) + 1
    words = {"why": _printable(event.why)[:_LONGEST], "who": _printable(event.who)[:_LONGEST_NAME]}
    content = json.dumps({**event.to_json(), **words}, ensure_ascii=False)
    with model.known():
        model.client.set_registered_model_tag(model.name, f"{PREFIX}{number:08d}.{secrets.token_hex(4)}", content)
    return number


def history(model: RegisteredModel) -> list[Event]:
    """All events, the oldest first."""
    return [event for _, event in _tags(model)[0]]


def standing(events: Sequence[Event]) -> list[Event]:
    """Those that took place: without what was broken off."""
    kept: list[Event] = []
    for event in events:
        last = next((place for place in range(len(kept) - 1, -1, -1) if kept[place].moves), None)
        if event.action == "broken off" and last is not None and _undoes(event, kept[last]):
            del kept[last]
        else:
            kept.append(event)
    return kept


def rolled_back_from(events: Sequence[Event], version: str) -> Event | None:
    """The last rollback that took `version` out of use, if there was one."""
    rollbacks = (event for event in reversed(events) if event.action == "rolled back" and event.origin == version)
    return next(rollbacks, None)


def settle(model: RegisteredModel) -> None:
    """Makes history and aliases agree; the caller has claimed the model.

    A promotion that was killed after its event and before the alias moved did not take place: the alias is what users
    load by, so history says what is found there.
    """
    tags, settled = _tags(model)
    number, said = _last_move(tags)
    aliases = model.aliases()
    is_there = aliases.get(CHAMPION)
    if said != is_there and settled < number:
        why = "the decision before was broken off, and the alias stands where it stood"
        number = record(model, Event("broken off", origin=said, target=is_there, why=why))
    elif said != is_there:
        why = "the alias was moved by other means than these commands"
        number = record(model, Event("found", origin=said, target=is_there, why=why))
    if settled < number:
        with model.known():
            model.client.set_registered_model_tag(model.name, SETTLED, str(number))
    previous = _previous(model, history(model), is_there)
    if previous and aliases.get(PREVIOUS) != previous:
        model.point(PREVIOUS, previous)
    elif not previous and PREVIOUS in aliases:
        model.remove_alias(PREVIOUS)


def is_settled(model: RegisteredModel) -> bool:
    """Whether `settle` would find nothing to do; a look that needs no claim, in two questions to MLflow."""
    with model.known():
        found = model.client.get_registered_model(model.name)
    tags, settled = _read_all(found.tags)
    number, said = _last_move(tags)
    aliases = {alias: str(number) for alias, number in found.aliases.items()}
    is_there = aliases.get(CHAMPION)
    if said != is_there or settled < number:
        return False
    return aliases.get(PREVIOUS) == _previous(model, [event for _, event in tags], is_there)


def earlier_champions(events: Sequence[Event]) -> list[str]:
    """Those that a rollback goes back to, the last one last: a promotion adds one, a rollback takes those away that it
    goes back behind. What is found where it stood before the last move undoes that move, which was broken off.
    """
    earlier: list[str] = []
    last: tuple[Event, list[str]] | None = None
    for event in (event for event in events if event.moves):
        if last is not None and _undoes(event, last[0]):
            earlier, last = last[1], None
            continue
        last = event, list(earlier)
        if event.action != "promoted" and event.target in earlier:
            del earlier[len(earlier) - 1 - earlier[::-1].index(event.target) :]
        elif event.origin is not None:
            earlier.append(event.origin)
    return earlier


def _last_move(tags: Sequence[tuple[int, Event]]) -> tuple[int, str | None]:
    """The number of the last event that moves, and the champion that it names."""
    moves = ((number, event.target) for number, event in tags if event.moves)
    return max(moves, default=(0, None), key=itemgetter(0))


def _previous(model: RegisteredModel, events: Sequence[Event], champion: str | None) -> str | None:
    """What a rollback goes back to."""
    there = model.numbers()
    return next((one for one in reversed(earlier_champions(events)) if one in there and one != champion), None)


def _undoes(event: Event, last: Event) -> bool:
    return event.action in ("found", "broken off") and (event.origin, event.target) == (last.target, last.origin)


def _printable(text: str) -> str:
    """In one line, with a space for what is no character, or one that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def _tags(model: RegisteredModel) -> tuple[list[tuple[int, Event]], int]:
    """The events with their numbers, the oldest first, and the number up to which they are settled."""
    if not model.exists():
        return [], 0
    with model.known():
        return _read_all(model.client.get_registered_model(model.name).tags)


def _read_all(tags: Mapping[str, str]) -> tuple[list[tuple[int, Event]], int]:
    read = ((int(found[1]), _read(key, tags[key])) for key in sorted(tags) if (found := _KEY.fullmatch(key)))
    settled = tags.get(SETTLED, "")
    return [(number, event) for number, event in read if event], int(settled) if settled.isdecimal() else 0


def _read(key: str, text: str) -> Event | None:
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
