"""What becomes of a version: the gate, the decision's traces, and the promotion, as commands and flows do them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.registry.history import history, standing
from diptych.registry.promotion import promote, reject, require_reason
from diptych.registry.registered_model import RegisteredModel, Version, model_folder

if TYPE_CHECKING:
    from diptych.registry.gate import Decision
    from diptych.retrieval.comparison import Comparison

Promotion = Literal["auto", "manual", "never"]
"""Of what passes the gate: at once, by a person's `diptych promote`, or without even asking the gate."""
Outcome = Literal["promoted", "rejected", "accepted", "champion already"]
"""`accepted`: it may be promoted by hand."""


class Considered(NamedTuple):
    """What became of a version."""

    outcome: Outcome
    version: Version
    before: str | None
    """The champion until then."""
    decision: Decision | None
    """None where the version is the champion already."""

    @property
    def why(self) -> str:
        """The decision in a sentence."""
        return self.decision.summary if self.decision else "it is the champion already"

    @property
    def refused(self) -> bool:
        """Whether the gate stood in the way."""
        return self.outcome == "rejected"

    def to_json(self) -> dict[str, Any]:
        """The version, and what became of it."""
        decision = self.decision.to_json() if self.decision else None
        return {**self.version.to_json(), "outcome": self.outcome, "before": self.before, "decision": decision}

    def describe(self) -> str:
        """Lines for people: every check, and the outcome."""
        lines = []
        if self.decision is not None:
            lines = [f"{'ok' if one.passed else 'NO':3} {one.name}: {one.found}" for one in self.decision.checks]
        before = f" in place of version {self.before}" if self.before else ""
        said = {
            "promoted": f"{self.version.title} is the champion{before}.",
            "rejected": f"{self.version.title} does not become champion.",
            "accepted": f"{self.version.title} may become champion: `diptych promote {self.version.version}`.",
            "champion already": f"{self.version.title} is the champion already.",
        }
        return "\n".join([*lines, said[self.outcome]])


def consider(
    model: RegisteredModel,
    version: Version,
    workspace: Workspace,
    params: Params,
    *,
    promotion: Promotion = "auto",
    why: str = "",
    force: bool = False,
) -> Considered:
    """Asks the gate about `version`, keeps what it says, and promotes if that is wanted.

    Args:
        promotion: "auto" moves the alias, "manual" leaves that to a person.
        why: a person's reason, if there is one.
        force: promote even what the gate refuses.

    Raises:
        DiptychError: `promote` or `decide` say why.
    """
    # What computes takes seconds to import, which a run that has nothing to decide need not wait for.
    from diptych.registry.gate import decide, keep

    if force:
        require_reason(why)
    champion = model.champion()
    if champion is not None and champion.version == version.version:
        return Considered("champion already", version, champion.version, None)
    decision = decide(model, version, workspace, params, unfetched=force)
    keep(model, version, decision)
    if promotion != "auto":
        outcome: Outcome = "accepted" if decision.accepted else "rejected"
    elif decision.accepted or force:
        promote(model, version, decision, why=why, forced=force and not decision.accepted)
        outcome = "promoted"
    else:
        outcome = "rejected"
    if outcome == "rejected":
        reject(model, version, decision)
    return Considered(outcome, model.find(version.version), decision.champion, decision)


def needs_decision(model: RegisteredModel, version: Version, data_md5: str, promotion: Promotion) -> bool:
    """Whether a run has to ask the gate: it does not undo a decision, such as a person's rollback, nor ask twice."""
    if promotion == "never":
        return False
    decided = any(version.version in (event.target, event.origin) for event in standing(history(model)))
    asked = version.tags.get("gate_champion"), version.tags.get("gate_data_md5")
    champion = model.champion()
    same = asked == (champion.version if champion else "none", data_md5)
    return not decided and not (promotion == "manual" and same)


def copy_to(model: RegisteredModel, version: Version, other: RegisteredModel) -> tuple[RegisteredModel, Version]:
    """`version` as a version of another registered model, which knows where it came from; copied once."""
    if other.name == model.name:
        return model, version
    model.copy(version, other.name)
    number = other.origin_of(version)
    assert number is not None
    return other, other.find(number)


def compare_versions(
    model: RegisteredModel, first: Version, second: Version, workspace: Workspace, params: Params
) -> Comparison:
    """The second after the first, on the project's test split."""
    from diptych.registry.measuring import gallery, measure
    from diptych.retrieval.comparison import compare

    on = gallery(workspace, params)
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for place, version in enumerate((first, second)):
            (target := Path(folder) / str(place)).mkdir()
            package = model.download(version, target)
            ranks.append(measure(model_folder(package), workspace, params, f"version {version.version}").ranks)
    return compare(ranks[0], ranks[1], on.image_of_caption, on.parts)
