"""Promotion with evidence, and rollback.

Every decision is made under a claim (`claimed`), on the state of the registry at that moment. It is recorded first, and
then moves the alias in one call, so that there is a champion at every moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from diptych.errors import DiptychError
from diptych.registry.claim import claimed, is_claimed
from diptych.registry.history import Event, history, is_reconciled, reconcile, record, rollback_targets
from diptych.registry.registered_model import CHAMPION, PREVIOUS, RegisteredModel, Version

if TYPE_CHECKING:
    from diptych.registry.decision import Decision


class ChampionChange(NamedTuple):
    """Champion after a rollback, and number of the champion before."""

    before: str | None
    """None where the alias was removed by other means."""
    version: Version

    def describe(self) -> str:
        """Return a clause for people."""
        before = f" in place of version {self.before}" if self.before else ""
        return f"{self.version.title} is the champion{before}"


def promote(
    model: RegisteredModel, version: Version, decision: Decision, *, why: str = "", forced: bool = False
) -> str | None:
    """Make `version` the champion, and return the number of the champion that it replaces; None where there is none.

    Where the `decision` of the gate is to reject it, only `forced` promotes.

    Raises:
        DiptychError: the gate refuses, or another version has become champion since it compared with the one before.
    """
    with claimed(model, f"promotion of {version.title}"):
        reconcile(model)
        champion = model.aliases().get(CHAMPION)
        if champion == version.version:
            return None
        if not forced:
            _require_acceptance(decision, version, champion, model)
        reason = why.strip() or decision.summary
        _move(model, version.version, Event("promoted", champion, version.version, reason, decision.figures(), forced))
    return champion


def reject(model: RegisteredModel, version: Version, decision: Decision) -> None:
    """Record that `version` did not become champion."""
    with claimed(model, f"rejection of {version.title}"):
        reconcile(model)
        champion = model.aliases().get(CHAMPION)
        record(model, Event("rejected", champion, version.version, decision.summary, decision.figures()))


def rollback_target(model: RegisteredModel, to: str | None = None) -> Version:
    """Return the version that a rollback makes the champion: the champion before, or the version `to`.

    Raises:
        DiptychError: there is none, or `to` was no champion before.
    """
    champion = model.aliases().get(CHAMPION)
    return model.find(_target(model, rollback_targets(model, history(model), champion), to, champion))


def roll_back(model: RegisteredModel, to: str | None = None, *, why: str) -> ChampionChange:
    """Make an earlier champion the champion again: the last one, or the version `to`.

    Raises:
        DiptychError: there is none, or its package is gone or damaged.
    """
    with claimed(model, "rollback"):
        reconcile(model)
        champion = model.aliases().get(CHAMPION)
        version = rollback_target(model, to)
        with model.fetched(version):
            _move(model, version.version, Event("rolled back", champion, version.version, why.strip()))
    # MLflow may fail from now on, and the rollback is done: its aliases are known without another request.
    aliases = {*version.aliases, CHAMPION} - {PREVIOUS}
    return ChampionChange(champion, version._replace(aliases=sorted(aliases)))


def repair(model: RegisteredModel) -> None:
    """Make history and aliases agree, and remove the claims of killed processes; do nothing without a registry."""
    if is_claimed(model) or not is_reconciled(model):
        with claimed(model, "repair"):
            reconcile(model)


def _target(model: RegisteredModel, earlier: list[str], to: str | None, champion: str | None) -> str:
    if to is None:
        if not earlier:
            reason = f"before version {champion} there was none" if champion else "there has been none"
            raise DiptychError(f"{model.name} has no earlier champion to go back to: {reason}.")
        return earlier[-1]
    number = model.find(to).version
    if number == champion:
        raise DiptychError(f"{model.name} version {number} is the champion already.")
    if number not in earlier:
        champions = ", ".join(dict.fromkeys(earlier)) or "none"
        raise DiptychError(
            f"{model.name} version {number} was no champion before version {champion} (those were: "
            f"{champions}; what was rolled back does not count). Promote it instead: "
            f"`diptych promote {number}`."
        )
    return number


def _require_acceptance(decision: Decision, version: Version, champion: str | None, model: RegisteredModel) -> None:
    """Raise an error unless the gate has compared `version` with the present champion, and accepted it."""
    if not decision.accepted:
        raise DiptychError(f"{version.title} is not promoted: {decision.summary}.")
    if decision.champion != champion:
        last = next((event for event in reversed(history(model)) if event.moves), None)
        by = f", by {last.who} at {last.when} ({last.why})" if last else ""
        raise DiptychError(
            f"{version.title} was compared with {_title(decision.champion)}, and meanwhile {_title(champion)} is the "
            f"champion{by}. Promote again, to compare with that one."
        )


def _title(number: str | None) -> str:
    return f"version {number}" if number else "no champion"


def _move(model: RegisteredModel, target: str, event: Event) -> None:
    record(model, event)
    model.set_alias(CHAMPION, target)
    reconcile(model)
