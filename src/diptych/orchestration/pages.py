"""The page of a flow run in Prefect: its artifacts and its log, and the events that notifications are sent for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from diptych.orchestration.automations import announce
from diptych.project.addresses import without_secret
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.drift.distance import Drift
    from diptych.registry.lifecycle import GateResult

PROGRESS_EVERY = 10.0
"""Seconds between two states of a progress bar in the log."""
_BAR = re.compile(r"\d+%\||\d+it \[")


def show_results(workspace: Workspace) -> None:
    """Publish the validation summary, metrics, ladder, verdicts and the report's address as artifacts of the run."""
    validation, metrics, ladder = (_read(workspace, name) for name in ("validation", "metrics", "ladder"))
    create_markdown_artifact(validation_summary(validation), key="validation", description="Results of validate")
    create_table_artifact(metrics_table(metrics), key="metrics", description="Retrieval on the test split")
    if rungs := ladder["rungs"]:
        create_table_artifact(rungs, key="ladder", description="RSUM from chance to the model, 95 % intervals")
        create_markdown_artifact(verdicts(ladder), key="verdicts", description="Claims about the model, tested")
    create_link_artifact((workspace.reports / "report.html").resolve().as_uri(), link_text="Report", key="report")


def show_decision(considered: GateResult) -> None:
    """Publish the gate's decision as an artifact, and announce a promotion or rejection."""
    decision, version = considered.decision, considered.version
    if decision is None:
        return
    create_markdown_artifact(decision.render(), key="gate", description=decision.summary)
    if considered.outcome == "promoted" or considered.outcome == "rejected":
        announce(considered.outcome, version.name, version.version, decision.summary)


def show_drift(drift: Drift) -> None:
    """Publish the distance between the new pairs and the champion's training pairs."""
    create_markdown_artifact(drift.render(), key="drift", description="New pairs compared with the champion's")


def show_summary(lines: Sequence[str], links: Mapping[str, str]) -> None:
    """Publish what the run did and why: `lines`, then `links`, which are addresses by their texts."""
    rows = [*(f"* {line}" for line in lines), "", *(f"[{text}]({address})" for text, address in links.items())]
    create_markdown_artifact("\n".join(rows), key="summary", description="What this run did, and why")


def run_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what a run of the retrain flow did and why, a sentence each."""
    ran = [name for name, outcome in summary["stages"].items() if outcome == "ran"]
    lines = [f"data/ is {summary['data']}", *summary["inbox"], *summary["why"]]
    lines.append(f"ran: {', '.join(ran)}" if ran else "no stage ran")
    if "version" in summary:
        version, decision = summary["version"], summary["decision"]
        state = f"{'new' if version['created'] else 'known already'}; {decision['outcome']} {decision['why']}"
        lines.append(f"{version['name']} version {version['version']}: {state}")
        lines.append(f"champion: {decision['champion'] or 'none yet'}")
    return [line.rstrip() for line in lines]


def mlflow_links(uri: str, version: Mapping[str, Any]) -> dict[str, str]:
    """Return the addresses of the version and its run by their texts; none where MLflow is a file without pages."""
    if not uri.startswith(("http://", "https://")):
        return {}
    base = without_secret(uri).rstrip("/")
    title = f"{version['name']} version {version['version']}"
    return {
        title: f"{base}/#/models/{quote(version['name'])}/versions/{version['version']}",
        "MLflow run": f"{base}/#/experiments/{version['experiment_id']}/runs/{version['run_id']}",
    }


def validation_summary(validation: Mapping[str, Any]) -> str:
    """Return the counts, and the expectations that do not hold, as Markdown."""
    rows = [
        f"| {table} | {counts['total']:,} | {counts['accepted']:,} | {counts['quarantined']:,} |"
        for table in ("images", "captions")
        for counts in [validation[table]]
    ]
    failed = [
        f"* {result['table']}: {result['expectation']} ({result.get('column') or 'table'}), {result['failed']} rows"
        for result in validation["expectations"]
        if not result["success"]
    ]
    head = ["| | total | accepted | quarantined |", "|---|---|---|---|"]
    result = "Expectations that do not hold:" if failed else "All expectations hold."
    return "\n".join([*head, *rows, "", result, *failed])


def verdicts(ladder: Mapping[str, Any]) -> str:
    """Return each claim with its answer, as Markdown."""
    return "\n".join(
        f"* {verdict['claim']}: **{verdict['answer']}**, by {verdict['gain']['rsum']:+.1f} RSUM "
        f'({verdict["gain"]["low"]:+.1f} to {verdict["gain"]["high"]:+.1f}) over "{verdict["over"]}"'
        for verdict in ladder["verdicts"]
    )


def metrics_table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each ranking (such as towers) and each direction."""
    return [
        {"ranking": ranking, "direction": direction, **values[direction], "rsum": values["rsum"]}
        for ranking, values in metrics.items()
        if isinstance(values, Mapping) and "rsum" in values
        for direction in ("i2t", "t2i")
    ]


def throttled(log: Callable[[str], None]) -> Callable[[str], None]:
    """Return `log`, but with one state of a progress bar in `PROGRESS_EVERY` seconds at most."""
    due = 0.0

    def on_line(line: str) -> None:
        nonlocal due
        if _BAR.search(line):
            if time.monotonic() < due:
                return
            due = time.monotonic() + PROGRESS_EVERY
        log(line)

    return on_line


def _read(workspace: Workspace, name: str) -> dict[str, Any]:
    return dict(json.loads((workspace.reports / f"{name}.json").read_text(encoding="utf-8")))
