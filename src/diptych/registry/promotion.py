"""Promotion with evidence, and rollback.

Every decision is made under a claim (`claimed`), on the state of the registry at that moment. It is recorded first, and
then moves the alias in one call, so that there is a champion at every moment.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diptych.errors import DiptychError
from diptych.registry.claim import claimed, is_claimed
from diptych.registry.history import Event, earlier_champions, history, is_reconciled, reconcile, record
from diptych.registry.registered_model import CHAMPION, RegisteredModel, Version

if TYPE_CHECKING:
    from diptych.registry.decision import Decision


class ChampionChange(NamedTuple):
    """Numbers of the champion before and after a decision."""

    before: str | None
    after: str


def promote(
    model: RegisteredModel, version: Version, decision: Decision | None, *, why: str = "", forced: bool = False
) -> ChampionChange:
    """Make `version` the champion.

    Where the `decision` of the gate is to reject it, only `forced` promotes; a forced promotion needs a reason, `why`.

    Raises:
        DiptychError: the gate refuses, a forced promotion has no reason, or another version has become champion since
            the gate compared with the one before.
    """
    if forced:
        require_reason(why)
    with claimed(model, f"promotion of {version.title}"):
        reconcile(model)
        champion = model.aliases().get(CHAMPION)
        if champion == version.version:
            return ChampionChange(champion, version.version)
        if not forced:
            _require_acceptance(decision, version, champion, model)
        figures = decision.figures() if decision else {}
        reason = why.strip() or (decision.summary if decision else "")
        return _move(model, Event("promoted", champion, version.version, reason, figures, forced))


def require_reason(why: str) -> None:
    """Raise an error where a promotion against the gate has no reason."""
    if not why.strip():
        raise DiptychError("A promotion against the gate needs a reason, which history keeps: --reason TEXT.")


def reject(model: RegisteredModel, version: Version, decision: Decision) -> None:
    """Record that `version` did not become champion."""
    with claimed(model, f"rejection of {version.title}"):
        reconcile(model)
        champion = model.aliases().get(CHAMPION)
        record(model, Event("rejected", champion, version.version, decision.summary, decision.figures()))


def roll_back(model: RegisteredModel, to: str | None = None, *, why: str) -> ChampionChange:
    """Make an earlier champion the champion again: the last one, or the version `to`.

    Raises:
        DiptychError: there is none, or its package is gone or damaged.
    """
    with claimed(model, "rollback"):
        reconcile(model)
        champion = model.aliases().get(CHAMPION)
        present = model.numbers()
        earlier = [number for number in earlier_champions(history(model)) if number in present and number != champion]
        target = _target(model, earlier, to, champion)
        with tempfile.TemporaryDirectory() as folder:
            model.download(model.find(target), Path(folder))
        return _move(model, Event("rolled back", champion, target, why.strip()))


def repair(model: RegisteredModel) -> None:
    """Make history and aliases agree, and remove the claims of killed processes; do nothing without a registry."""
    if model.exists() and (is_claimed(model) or not is_reconciled(model)):
        with claimed(model, "repair"):
            reconcile(model)


def _target(model: RegisteredModel, earlier: list[str], to: str | None, champion: str | None) -> str:
    if to is None:
        if not earlier:
            reason = f"version {champion} is the only one that there has been" if champion else "there has been none"
            raise DiptychError(f"{model.name} has no earlier champion to go back to: {reason}.")
        return earlier[-1]
    number = model.find(to).version
    if number == champion:
        raise DiptychError(f"{model.name} version {number} is the champion already.")
    if number not in earlier:
        champions = ", ".join(dict.fromkeys(earlier)) or "none"
        raise DiptychError(
            f"{model.name} version {number} was no champion before (those there are: {champions}). Promote it instead: "
            f"`diptych promote {number}`."
        )
    return number


def _require_acceptance(
    decision: Decision | None, version: Version, champion: str | None, model: RegisteredModel
) -> None:
    """Raise an error unless the gate has compared `version` with the present champion, and accepted it."""
    if decision is None or not decision.accepted:
        reason = decision.summary if decision else "the gate was not asked"
        raise DiptychError(f"{version.title} is not promoted: {reason}.")
    if decision.champion != champion:
        last = next((event for event in reversed(history(model)) if event.moves), None)
        by = f", by {last.who} at {last.when} ({last.why})" if last else ""
        raise DiptychError(
            f"{version.title} was compared with {_title(decision.champion)}, and meanwhile {_title(champion)} is the "
            f"champion{by}. Promote again, to compare with that one."
        )


def _title(number: str | None) -> str:
    return f"version {number}" if number else "no champion"


def _move(model: RegisteredModel, event: Event) -> ChampionChange:
    assert event.target is not None
    record(model, event)
    model.set_alias(CHAMPION, event.target)
    reconcile(model)
    return ChampionChange(event.origin, event.target)
