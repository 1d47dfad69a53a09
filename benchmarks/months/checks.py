"""Checks of the year's outcome."""

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
    """A claim that must hold, with the evidence."""

    claim: str
    holds: bool
    found: str = ""


@dataclass(frozen=True)
class Played:
    """A month after its run, and before the actions of a person."""

    month: Month
    run: FlowRun
    drop: dict[str, Any]
    """The drop's entry in the ledger."""
    data_before: str
    data_after: str
    version: str | None
    """Number of the version that was registered in this month."""
    gate: str
    """The gate's decision on that version."""
    rsum: float | None
    champion: str | None
    seconds: float
    """Seconds from the drop to the end of the run."""
    done: str = ""
    """Output of what a person did afterwards."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        del values["run"]["logs"]
        return {**values, "trained": self.run.trained}


def of_month(played: Played, before: Played | None) -> Iterator[Check]:
    """Check what the run of a month did, compared with the month before."""
    name, kind = played.month.name, played.month.kind
    yield Check(f"{name}: made by Prefect's scheduler, and completed", _sound(played.run), played.run.state)
    champion = before.champion if before else None
    if kind in GOOD:
        yield Check(f"{name}: taken", played.drop["outcome"] == "taken", played.drop["outcome"])
        yield Check(
            f"{name}: trained and promoted",
            played.version is not None and played.champion == played.version,
            played.gate,
        )
    else:
        outcome = {"identical": "known", "wrong captions": "taken"}.get(kind, "refused")
        yield Check(f"{name}: {outcome}", played.drop["outcome"] == outcome, played.drop.get("reason", ""))
    if kind in REFUSED or kind == "identical":
        yield Check(f"{name}: nothing trained", not played.run.trained and played.version is None)
        yield Check(f"{name}: data as before", played.data_before == played.data_after, played.data_after[:12])
    if kind == "drifted":
        drifted = [line for line in played.run.summary.splitlines() if " drifted by " in line]
        yield Check(f"{name}: the drift is reported", bool(drifted), drifted[0] if drifted else "")
    if kind == "wrong captions":
        rejected = played.gate == "rejected" and played.champion != played.version
        yield Check(f"{name}: trained, and rejected by the gate", played.run.trained and rejected, played.gate)
    if kind not in GOOD and before is not None:
        yield Check(f"{name}: the champion stays", played.champion == champion, f"version {played.champion}")


def of_year(year: Sequence[Played], events: Sequence[dict[str, Any]], stack: Stack) -> Iterator[Check]:
    """Check the history, the dataset and the remotes at the end of the year."""
    kinds = [played.month.kind for played in year]
    counts = {
        "drop refused": sum(kind in REFUSED for kind in kinds),
        "drop known": kinds.count("identical"),
        "rejected": kinds.count("wrong captions"),
        "promoted": sum(kind in GOOD for kind in kinds),
        "rolled back": sum(played.month.afterwards == "rollback" for played in year),
        "found": 0,
    }
    for action, wanted in counts.items():
        found = sum(event["action"] == action for event in events)
        yield Check(f"history has {wanted} times {action!r}", found == wanted, str(found))
    by = {event["who"] for event in events if event["action"] == "rolled back"}
    yield Check("rollbacks are a person's", by <= {OPERATOR}, ", ".join(by))
    if any(played.month.afterwards == "revert" for played in year):
        wrong = [name for name in stack.project.sources() if "1006-" in name]
        yield Check("no picture of the reverted drop is in the dataset", not wrong, f"{len(wrong)} are")
    if idle := [played.run.seconds for played in year if played.month.kind == "identical"]:
        fastest = min(played.run.seconds for played in year if played.run.trained)
        found = f"{max(idle):.0f} s, and {fastest:.0f} s with training"
        yield Check("an identical drop costs less than half of a training", 2 * max(idle) < fastest, found)


def of_versions(versions: Sequence[Any], packages: Sequence[str], stack: Stack) -> Iterator[Check]:
    """Check that every version has what it needs to be used, and to be reproduced."""
    damaged = [problem for problem in packages if problem]
    yield Check("every version's package is in MLflow, whole", not damaged, "; ".join(damaged) or str(len(packages)))
    lacking = [version.version for version in versions if not _has(stack, version.tags.get("git_sha", ""))]
    yield Check("the git remote has every version's commit", not lacking, ", ".join(lacking) or str(len(versions)))


def _sound(run: FlowRun) -> bool:
    return run.by_schedule and run.state == "COMPLETED"


def _has(stack: Stack, commit: str) -> bool:
    origin = stack.project.root.parent / "origin.git"
    command = ["git", "merge-base", "--is-ancestor", commit or "none", "diptych/runs"]
    return subprocess.run(command, cwd=origin, capture_output=True).returncode == 0
