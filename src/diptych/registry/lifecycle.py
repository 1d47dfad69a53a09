"""Steps from a registered version to a champion, as commands and flows run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from diptych.config import Gate, Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.registry.history import effective_events, history
from diptych.registry.promotion import ChampionChange, promote, reject, roll_back, rollback_target
from diptych.registry.registered_model import RegisteredModel, Version
from diptych.registry.serving import IndexSwitch

if TYPE_CHECKING:
    from diptych.registry.decision import Decision
    from diptych.retrieval.comparison import Comparison

Promotion = Literal["auto", "manual", "never"]
"""Way of promotion: at once, by a person's `diptych promote`, or not at all, without asking the gate."""
Outcome = Literal["promoted", "rejected", "accepted", "champion already"]
"""Outcome for a version. `accepted`: a person may promote it."""


class GateResult(NamedTuple):
    """Outcome for a version that the gate judged."""

    outcome: Outcome
    version: Version
    before: str | None
    """Number of the champion until then."""
    decision: Decision | None
    """None where the version is the champion already."""

    @property
    def reason(self) -> str:
        """The decision, in one sentence."""
        return self.decision.summary if self.decision else "it is the champion already"

    def to_json(self) -> dict[str, Any]:
        """Return the version, the outcome and the decision as plain values."""
        decision = self.decision.to_json() if self.decision else None
        return {**self.version.to_json(), "outcome": self.outcome, "before": self.before, "decision": decision}

    def describe(self) -> str:
        """Return lines for people: every check, and the outcome."""
        lines = []
        if self.decision is not None:
            lines = [
                f"{'ok' if check.passed else 'NO':3} {check.name}: {check.found}" for check in self.decision.checks
            ]
        before = f" in place of version {self.before}" if self.before else ""
        outcomes = {
            "promoted": f"{self.version.title} is the champion{before}.",
            "rejected": f"{self.version.title} does not become champion.",
            "accepted": f"{self.version.title} may become champion: `diptych promote {self.version.version}`.",
            "champion already": f"{self.version.title} is the champion already.",
        }
        return "\n".join([*lines, outcomes[self.outcome]])


def gate_and_promote(
    model: RegisteredModel,
    version: Version,
    workspace: Workspace,
    params: Params,
    *,
    promotion: Promotion = "auto",
    why: str = "",
    force: bool = False,
) -> GateResult:
    """Ask the gate about `version`, store its decision, and promote if `promotion` says so.

    `promotion` "auto" moves the alias, "manual" leaves that to a person. `why` is the reason of a person, if there is
    one. With `force` even a version that the gate rejects is promoted.

    Raises:
        DiptychError: as `decide` and `promote`.
    """
    # It imports torch, which a run that has nothing to decide does not need.
    from diptych.registry.gate import decide, store_decision

    if force and not why.strip():
        raise DiptychError("A promotion against the gate needs a reason, which history keeps: --reason TEXT.")
    champion = model.champion()
    if champion is not None and champion.version == version.version:
        return GateResult("champion already", version, champion.version, None)
    decision = decide(model, version, workspace, params, missing_fails=force)
    store_decision(model, version, decision)
    before = decision.champion
    if promotion != "auto":
        outcome: Outcome = "accepted" if decision.accepted else "rejected"
    elif decision.accepted or force:
        # A forced promotion may replace another champion than the gate measured.
        with _switched(model, version, workspace, params):
            before = promote(model, version, decision, why=why, forced=force and not decision.accepted)
        outcome = "promoted"
    else:
        outcome = "rejected"
    if outcome == "rejected":
        reject(model, version, decision)
    return GateResult(outcome, model.find(version.version), before, decision)


def roll_back_with_indexes(
    model: RegisteredModel, workspace: Workspace, params: Params, to: str | None = None, *, why: str
) -> ChampionChange:
    """Roll back as `roll_back` does, and bring the indexes of that version up to date before.

    Raises:
        DiptychError: as `roll_back`, or a collection cannot be indexed, in which case the champion stays.
    """
    target = rollback_target(model, to)
    with _switched(model, target, workspace, params):
        return roll_back(model, target.version, why=why)


@contextmanager
def _switched(model: RegisteredModel, version: Version, workspace: Workspace, params: Params) -> Iterator[None]:
    """Index the collections with a version before the block makes it champion."""
    switch = IndexSwitch(workspace, params)
    if switch.is_needed:
        with model.fetched(version) as folder:
            switch.prepare(folder)
    yield
    switch.announce()


def needs_decision(model: RegisteredModel, version: Version, data_md5: str, gate: Gate, promotion: Promotion) -> bool:
    """Return whether a run asks the gate about `version`.

    It does not where history has a decision on `version`, so that no run undoes a rollback. With "manual" it does not
    ask twice for the same champion, data and conditions, which include the hashes of guard sets and of judged
    queries.
    """
    if promotion == "never":
        return False
    decided = any(version.version in (event.target, event.origin) for event in effective_events(history(model)))
    asked = [version.tags.get(name) for name in ("gate_champion", "gate_data_md5", "gate_sha256")]
    champion = model.champion()
    is_unchanged = asked == [champion.version if champion else "none", data_md5, gate.sha256]
    return not decided and not (promotion == "manual" and is_unchanged)


def compare_versions(
    model: RegisteredModel, first: Version, second: Version, workspace: Workspace, params: Params
) -> Comparison:
    """Return the comparison of the second version with the first on the project's test split."""
    from diptych.registry.measuring import gallery, measure
    from diptych.retrieval.comparison import compare

    test = gallery(workspace, params)
    ranks = []
    for version in (first, second):
        with model.fetched(version) as folder:
            ranks.append(measure(folder, workspace, params, f"version {version.version}").ranks)
    return compare(ranks[0], ranks[1], test.image_of_caption, test.parts)
