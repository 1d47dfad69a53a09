"""What must have come of the year, each with what was found."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from months.drops import Kind, Month
from months.project import OPERATOR
from months.scheduled import FlowRun
from months.stack import Stack

REFUSED: tuple[Kind, ...] = ("corrupt", "damaged table")
GOOD: tuple[Kind, ...] = ("normal", "drifted")


class Check(NamedTuple):
    """Something that must be so."""

    claim: str
    holds: bool
    found: str = ""


@dataclass(frozen=True)
class Played:
    """A month, after its run and before what a person does then."""

    month: Month
    run: FlowRun
    drop: dict[str, Any]
    """Its entry in the ledger."""
    data_before: str
    data_after: str
    version: str | None
    """That was registered in it."""
    gate: str
    """What the gate says of that."""
    rsum: float | None
    champion: str | None
    seconds: float
    """From the drop to the end of the run."""
    done: str = ""
    """By a person, afterwards."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = asdict(self)
        del values["run"]["logs"]
        return {**values, "trained": self.run.trained}


def of_month(one: Played, before: Played | None) -> Iterator[Check]:
    """What the run of a month must have done, after that of the month before."""
    name, kind = one.month.name, one.month.kind
    yield Check(f"{name}: made by Prefect's scheduler, and completed", _sound(one.run), one.run.state)
    champion = before.champion if before else None
    if kind in GOOD:
        yield Check(f"{name}: taken", one.drop["outcome"] == "taken", one.drop["outcome"])
        yield Check(f"{name}: trained and promoted", one.version is not None and one.champion == one.version, one.gate)
    else:
        outcome = {"identical": "known", "wrong captions": "taken"}.get(kind, "refused")
        yield Check(f"{name}: {outcome}", one.drop["outcome"] == outcome, one.drop.get("reason", ""))
    if kind in REFUSED or kind == "identical":
        yield Check(f"{name}: nothing trained", not one.run.trained and one.version is None)
        yield Check(f"{name}: data as before", one.data_before == one.data_after, one.data_after[:12])
    if kind == "drifted":
        drifted = [line for line in one.run.summary.splitlines() if " drifted by " in line]
        yield Check(f"{name}: the drift is told", bool(drifted), drifted[0] if drifted else "")
    if kind == "wrong captions":
        rejected = one.gate == "rejected" and one.champion != one.version
        yield Check(f"{name}: trained, and rejected by the gate", one.run.trained and rejected, one.gate)
    if kind not in GOOD and before is not None:
        yield Check(f"{name}: the champion stays", one.champion == champion, f"version {one.champion}")


def of_year(year: Sequence[Played], events: Sequence[dict[str, Any]], stack: Stack) -> Iterator[Check]:
    """What history, the dataset and the remotes must hold in the end."""
    kinds = [one.month.kind for one in year]
    counts = {
        "drop refused": sum(kind in REFUSED for kind in kinds),
        "drop known": kinds.count("identical"),
        "rejected": kinds.count("wrong captions"),
        "promoted": sum(kind in GOOD for kind in kinds),
        "rolled back": sum(one.month.afterwards == "rollback" for one in year),
        "found": 0,
    }
    for action, wanted in counts.items():
        found = sum(event["action"] == action for event in events)
        yield Check(f"history has {wanted} times {action!r}", found == wanted, str(found))
    by = {event["who"] for event in events if event["action"] == "rolled back"}
    yield Check("rollbacks are a person's", by <= {OPERATOR}, ", ".join(by))
    if any(one.month.afterwards == "revert" for one in year):
        wrong = [name for name in stack.project.sources() if "1006-" in name]
        yield Check("no picture of the reverted drop is in the dataset", not wrong, f"{len(wrong)} are")
    if idle := [one.run.seconds for one in year if one.month.kind == "identical"]:
        fastest = min(one.run.seconds for one in year if one.run.trained)
        found = f"{max(idle):.0f} s, and {fastest:.0f} s with training"
        yield Check("an identical drop costs less than half of a training", 2 * max(idle) < fastest, found)


def of_versions(versions: Sequence[Any], packages: Sequence[str], stack: Stack) -> Iterator[Check]:
    """Every version has what it needs to be used, and to be made again."""
    damaged = [said for said in packages if said]
    yield Check("every version's package is in MLflow, whole", not damaged, "; ".join(damaged) or str(len(packages)))
    lacking = [one.version for one in versions if not _has(stack, one.tags.get("git_sha", ""))]
    yield Check("the git remote has every version's commit", not lacking, ", ".join(lacking) or str(len(versions)))


def _sound(run: FlowRun) -> bool:
    return run.by_schedule and run.state == "COMPLETED"


def _has(stack: Stack, commit: str) -> bool:
    origin = stack.project.root.parent / "origin.git"
    command = ["git", "merge-base", "--is-ancestor", commit or "none", "diptych/runs"]
    return subprocess.run(command, cwd=origin, capture_output=True).returncode == 0
